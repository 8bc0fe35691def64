"""Requests to an S3 server again while trying again may help; what lasts becomes an error in words (base.py)."""

from __future__ import annotations

import random
import time

from tasks.stores.base import AccessDenied, Archived, CannotHold, Changed, NotFound, StoreError, Unavailable

ATTEMPTS = 10  # tries before an object store counts as unavailable: about a minute of waiting in all
FIRST_WAIT, LONGEST_WAIT = 0.2, 20.0  # seconds; doubled each time, full jitter

THROTTLED = {"SlowDown", "Throttling", "ThrottlingException", "RequestLimitExceeded", "TooManyRequests"}
TRANSIENT = {
    "InternalError", "ServiceUnavailable", "RequestTimeout", "IncompleteBody", "BadDigest",
    "ConditionalRequestConflict", "OperationAborted", "PriorRequestNotComplete",
}  # fmt: skip
REFUSED = {
    "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken",
    "AllAccessDisabled", "AccountProblem", "Forbidden", "Unauthorized",
}  # fmt: skip


def patiently(action, where: str):
    """`action()`, again while the server is busy, failing or out of reach; other errors as StoreError.

    Waits a random time of up to 0.2, 0.4, ... 20 s (full jitter), or what Retry-After asks for.
    """
    from botocore.exceptions import BotoCoreError, ClientError

    started = time.monotonic()
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return action()
        except (ClientError, BotoCoreError, OSError) as error:
            failure = lasting_failure(error, where)
            if failure:
                raise failure from error
            if attempt == ATTEMPTS:
                waited = time.monotonic() - started
                raise Unavailable(
                    f"{where}: given up after {attempt} tries in {waited:.0f} s; the last one: {brief(error)}. "
                    "Check the endpoint and the network, or start again later"
                ) from error
            time.sleep(wait_before_retry(error, attempt))
    raise AssertionError("unreachable")


def wait_before_retry(error: Exception, attempt: int) -> float:
    response = getattr(error, "response", None) or {}
    asked = response.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("retry-after", "")
    if asked.isdigit():
        return min(float(asked), LONGEST_WAIT)
    return random.uniform(0, min(LONGEST_WAIT, FIRST_WAIT * 2 ** (attempt - 1)))


def lasting_failure(error: Exception, where: str) -> StoreError | None:
    """The StoreError that `error` means; None where trying again may help."""
    from botocore import exceptions as boto

    if isinstance(error, boto.ClientError):
        code = str(error.response.get("Error", {}).get("Code", ""))
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        if code in THROTTLED | TRANSIENT or status in (408, 429) or (status >= 500 and status != 501):
            return None
        if code == "InvalidObjectState":
            return Archived(f"{where}: in an archive storage class; restore it on S3 first (restore-object)")
        if code == "NoSuchBucket":
            return NotFound(f"{where}: there is no such bucket")
        if status == 404 or code in ("NoSuchKey", "NotFound"):
            return NotFound(f"{where}: no such object (any more)")
        if status == 412 or code == "PreconditionFailed":
            return Changed(f"{where}: the object has changed since it was listed; the next run takes it up")
        if code in REFUSED or status in (401, 403):
            return AccessDenied(f"{where}: the server refuses these credentials ({code})")
        return StoreError(f"{where}: {brief(error)}")
    if isinstance(error, boto.NoCredentialsError | boto.PartialCredentialsError | boto.ProfileNotFound):
        return AccessDenied(f"{where}: {brief(error)}; set AWS_ACCESS_KEY_ID and so on, or a profile")
    if isinstance(error, boto.ParamValidationError):
        return CannotHold(f"{where}: {brief(error)}")
    if isinstance(error, boto.HTTPClientError | boto.ReadTimeoutError | boto.IncompleteReadError | OSError):
        return None  # connections: refused, reset, timed out, cut short
    if isinstance(error, boto.ConnectionError):
        return None
    return StoreError(f"{where}: {brief(error)}")


def brief(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:400]
