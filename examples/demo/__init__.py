"""``make demo``: from nothing to a trained model, with a resize and a kill on the way."""
