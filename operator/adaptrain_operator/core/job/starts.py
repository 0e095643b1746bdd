"""Workers that fail before they have trained.

Of a job that never trained, the same failure of every start will not mend itself: the job ends after a few. Of one that
trains, the workers of a new template are on trial: they cost no restart, and once a few have failed the change of the
template stops. Those of the old one train on, and the template may be changed again or back at any time.
"""

from adaptrain_api.training.failures import MOST_STARTS, error_of
from adaptrain_api.training.status import FailedStarts

from adaptrain_operator.core.job import exit_reason
from adaptrain_operator.core.job.context import Draft
from adaptrain_operator.core.job.exit_reason import ExitClass
from adaptrain_operator.core.objects.pods import template_hash
from adaptrain_operator.core.observed import Pod


def note_training(draft: Draft) -> None:
    """Remember which template's workers have trained: the newest that has."""
    trained = {pod.template_hash for pod in draft.ready if pod.uid in draft.trained} if draft.fresh else set()
    newest = template_hash(draft.job)
    if newest in trained:
        draft.fields |= {"trained_template": newest, "failed_starts": None}
    elif trained and draft.value("trained_template") is None:
        draft.fields["trained_template"] = sorted(trained)[0]


def on_trial(draft: Draft) -> bool:
    """Whether the workers that are made now are of a template that has not trained, and those of another one have."""
    return draft.value("trained_template") not in (None, template_hash(draft.job))


def proved_image(draft: Draft) -> str | None:
    """The image of workers that train, while another one is on trial: a coordinator that is lost meanwhile needs it."""
    if not on_trial(draft):
        return None
    trained = draft.value("trained_template")
    return next((pod.image for pod in draft.active if pod.template_hash == trained), None)


def of_no_account(draft: Draft, pod: Pod) -> bool:
    """Whether a pod's failure says nothing of the template that trains."""
    return draft.value("trained_template") not in (None, pod.template_hash)


def never_trained(draft: Draft) -> bool:
    return draft.value("trained_template") is None and not draft.job.status.step


def count_start(draft: Draft, pod: Pod) -> None:
    """Count a worker that failed before it trained, if it is of the template that is wanted now."""
    template = template_hash(draft.job)
    if pod.template_hash != template:
        return
    known: FailedStarts | None = draft.value("failed_starts")
    error = error_of(exit_reason.explain(pod))
    if known is None or known.template != template or (known.error != error and not on_trial(draft)):
        known = FailedStarts(template=template, count=0, error=error)
    hopeless = on_trial(draft) and exit_reason.ending(pod, draft.job.spec.pod_failure_policy) is not ExitClass.FAILED
    count = MOST_STARTS if hopeless else known.count + 1
    draft.fields["failed_starts"] = FailedStarts(template=template, count=count, error=error)


def failed_starts(draft: Draft) -> int:
    """How often the template that is wanted now has failed in a row."""
    known: FailedStarts | None = draft.value("failed_starts")
    return known.count if known is not None and known.template == template_hash(draft.job) else 0


def stopped(draft: Draft) -> bool:
    """Whether a change of the template goes no further."""
    return on_trial(draft) and failed_starts(draft) >= MOST_STARTS
