"""The elastic core: who is a member, how a group is formed and left, and how its state stays whole."""
