"""Why the API server refuses a pod, and what to do: its rules speak of fields that a job's user never wrote."""

import re

_KNOWN = (
    ("exceeded quota", "QuotaExceeded", "raise the quota, free some of it, or ask for less"),
    (
        "must specify",
        "QuotaNeedsResources",
        "the namespace's ResourceQuota counts these, so give them in workers.resources (and coordinator.resources)",
    ),
    (
        "error looking up service account",
        "ServiceAccountNotFound",
        "create the ServiceAccount that workers.serviceAccountName names, or leave the field out",
    ),
    ("no PriorityClass with name", "PriorityClassNotFound", "correct workers.priorityClassName"),
    ("RuntimeClass", "RuntimeClassNotFound", "correct workers.runtimeClassName, or have the class made"),
    (
        r"(per|of) (Container|Pod)|limit to request ratio",
        "OutsideLimitRange",
        "the namespace's LimitRange bounds these: change workers.resources or coordinator.resources",
    ),
    (
        "violates PodSecurity",
        "PodSecurityViolated",
        "the namespace takes no such pods: leave out what the message names, or use another namespace",
    ),
    (
        "security context constraint",
        "SecurityContextRefused",
        "the namespace assigns users: have jobs.users set to Assigned in the chart, and leave out"
        " workers.securityContext, or give ids of the namespace's ranges",
    ),
    (
        "toleration",
        "TolerationsForbidden",
        "the namespace's list of tolerations lacks some of the job's: ask the cluster's administrator to add them",
    ),
    ("admission webhook", "WebhookDenied", "do what the message says, or ask the cluster's administrator"),
)


def refusal(status: int, message: str) -> tuple[str, str]:
    """The reason of a condition, and a sentence with the remedy.

    Args:
        status: of the HTTP answer.
        message: the API server's words.
    """
    reason, remedy = next(
        ((reason, remedy) for pattern, reason, remedy in _KNOWN if re.search(pattern, message)),
        ("PodForbidden", "ask the cluster's administrator, or change the job")
        if status == 403
        else ("PodRefused", "correct the job"),
    )
    return reason, f"the API server refuses its objects: {message[:500]}: {remedy}"
