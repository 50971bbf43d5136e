"""Every code that an error may have over HTTP: its usual status, its title, and what a person does about it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Kind:
    """A stable code: its usual status, its title, and what a person does about it."""

    status: int
    title: str
    advice: str


KINDS: dict[str, Kind] = {
    "already_settled": Kind(
        409, "Study is settled", "Give num_seeds to measure it on further seeds all the same."
    ),
    "ambiguous_prefix": Kind(409, "Several studies match", "Give more characters of the study's id."),
    "badge_needs_key": Kind(
        403, "Only a key makes a badge", "Ask with an access key that has the scope read."
    ),
    "body_too_large": Kind(
        413, "Request body too large", "Send a smaller body; a study needs a few kilobytes."
    ),
    "budget_exceeded": Kind(
        422,
        "Budget above this server's limit",
        "Lower the value, or ask the operator to raise the setting it names.",
    ),
    "conflict": Kind(409, "Conflict", "Read the object again and decide anew."),
    "cross_site_request": Kind(
        403,
        "Request from another site",
        "Call the API from its own pages or from a program, not from another site.",
    ),
    "database_unavailable": Kind(503, "Database unavailable", "Wait and send the same request again."),
    "forbidden": Kind(403, "Not allowed with this key", "Use a key with the scope that is named."),
    "host_not_allowed": Kind(
        400, "Host not allowed", "Use the service's own name, or set CLIPTUNE_ALLOWED_HOSTS on the server."
    ),
    "http_error": Kind(400, "Request refused", "Read the detail."),
    "idempotency_key_invalid": Kind(
        400, "Idempotency-Key not valid", "Use 1 to 200 printable ASCII characters."
    ),
    "idempotency_key_missing": Kind(
        400,
        "Idempotency-Key missing",
        "Send the header Idempotency-Key with a new random value per request.",
    ),
    "idempotency_key_reused": Kind(
        422, "Idempotency-Key used for another body", "Draw a new key for a new request."
    ),
    "internal_error": Kind(500, "Internal error", "Report the request id; the server's log has the cause."),
    "invalid_cursor": Kind(422, "Cursor not valid", "Start again without a cursor."),
    "invalid_request": Kind(422, "Request is not valid", "Correct the fields that `errors` points at."),
    "invalid_spec": Kind(422, "Study is not valid", "Correct the fields that `errors` points at."),
    "key_expired": Kind(401, "Access key expired", "Ask for a new key."),
    "key_malformed": Kind(401, "Access key malformed", "Copy the key whole; its last part is a checksum."),
    "key_missing": Kind(401, "Access key missing", "Send the header Authorization: Bearer KEY."),
    "key_not_found": Kind(404, "No such access key", "`cliptune keys list` shows the keys of this tenant."),
    "key_revoked": Kind(401, "Access key revoked", "Ask for a new key."),
    "key_unknown": Kind(401, "Access key unknown", "Check that the key belongs to this service."),
    "last_admin_key": Kind(409, "Last key with the scope admin", "Make another one with that scope first."),
    "lease_lost": Kind(409, "Lease is lost", "Stop this training, and ask for another lane."),
    "malformed_json": Kind(400, "Body is not JSON", "Correct the JSON at the position that is named."),
    "method_not_allowed": Kind(405, "Method not allowed", "Use a method that the Allow header lists."),
    "name_taken": Kind(409, "Name belongs to another study", "Choose another name."),
    "no_recommendation_yet": Kind(404, "No recommendation yet", "Wait until the study has succeeded."),
    "no_worker": Kind(
        503, "No worker", "Start one with `cliptune worker`, or all together with `cliptune serve`."
    ),
    "not_external": Kind(
        409, "Study is trained by workers", "Submit a study with external set, to train its trials yourself."
    ),
    "not_found": Kind(404, "Not found", "Check the id; it may belong to another key's tenant."),
    "query_incomplete": Kind(
        422,
        "Query says too little",
        "Give workload or fingerprint, or optimizer with what else is known of the training.",
    ),
    "recommendation_not_found": Kind(404, "No such recommendation", "Check the id, or the version."),
    "not_settleable": Kind(
        409,
        "No reasonable number of seeds would settle it",
        "Give num_seeds to try all the same, or submit a study with a larger effect.",
    ),
    "nothing_to_extend": Kind(409, "No comparison to extend", "Submit a new study."),
    "report_differs": Kind(409, "Step was reported with another value", "Repeat a report as it was."),
    "route_not_found": Kind(404, "No such address", "GET /docs lists the addresses."),
    "step_not_rising": Kind(409, "Step is behind the newest report", "Report steps in rising order."),
    "step_out_of_range": Kind(
        422, "Step is above the run's last one", "Count optimizer steps, from 0 to num_steps of the lease."
    ),
    "study_ended": Kind(409, "Study has ended", "Nothing is left to train; GET the study for its result."),
    "study_finished": Kind(409, "Study has ended", "Nothing is left to do."),
    "study_not_done": Kind(409, "Study has not ended", "Wait until it has, then extend it."),
    "study_not_found": Kind(404, "No such study", "GET /v1/studies lists the studies of this key."),
    "token_expired": Kind(
        401, "Identity token expired", "Get a new one: each job of a pipeline has its own."
    ),
    "token_malformed": Kind(401, "Identity token malformed", "Pass it on whole, as the pipeline gave it."),
    "token_untrusted": Kind(401, "Identity token not trusted", "Compare its claims with CLIPTUNE_OIDC."),
    "token_unverifiable": Kind(503, "Identity token can't be verified", "Try again, or use an access key."),
    "too_few_seeds": Kind(422, "Too few fresh seeds", "Ask for two at least: one has no error bar."),
    "too_many_reports": Kind(422, "Too many reports", "Report less often: 10,000 are kept of a lane."),
    "too_many_seeds": Kind(
        422, "Too many fresh seeds", "Ask for as many as are left, or submit a new study."
    ),
    "too_many_webhooks": Kind(409, "Too many webhooks", "Delete one first: a tenant has at most 20."),
    "trial_not_found": Kind(
        404, "No such lane", "Use the trial_id and the lease_token that trials:ask answered together."
    ),
    "unauthorized": Kind(
        401, "Access key missing or not valid", "Send the header Authorization: Bearer KEY."
    ),
    "unavailable": Kind(503, "Temporarily unavailable", "Wait and send the same request again."),
    "unknown_method": Kind(422, "Unknown clipping method", "GET /v1/methods lists them."),
    "unknown_workload": Kind(
        422,
        "Unknown workload",
        "GET /v1/workloads lists them; a worker registers its workloads when it starts.",
    ),
    "unsupported_media_type": Kind(
        415, "Content type not supported", "Send Content-Type: application/json; `curl --json` does."
    ),
    "value_missing": Kind(
        422,
        "Completed without an objective",
        "Report it at the last step, or send value with the completion.",
    ),
    "webhook_not_found": Kind(
        404, "No such webhook", "GET /v1/webhooks lists the webhooks of this key's tenant."
    ),
    "webhook_url_refused": Kind(
        422, "Webhooks may not go there", "Give an https address of a public host, on a port that is allowed."
    ),
}
