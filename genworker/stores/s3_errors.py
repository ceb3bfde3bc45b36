"""What botocore's errors mean to genworker: by type and code, in one place.

In: an error of botocore and what was being done. Out: one of our errors, which says where it happened and what to do
next. Retries are decided by these types, so whatever another attempt cannot mend must not be a plain `StoreError`.
"""

from __future__ import annotations

import re

from botocore import exceptions as boto
from botocore.parsers import ResponseParserError

from genworker.errors import (
    GenworkerError,
    ObjectExistsError,
    ObjectMissingError,
    StoreAccessError,
    StoreError,
    StoreFullError,
    UsageError,
)

# The parser's own is no BotoCoreError: it comes where a reply that should be XML is damaged, or is some gateway's page.
BOTO_ERRORS = (boto.BotoCoreError, boto.ClientError, ResponseParserError)

# Codes of a put that is sent again, which the SDK does not do: another put or delete of the key was in flight, and which one
# won is known only by asking again; or what arrived is not what was sent.
PUT_AGAIN = {
    "ConditionalRequestConflict",
    "NoSuchKey",
    "BadDigest",
    "IncompleteBody",
    "XAmzContentChecksumMismatch",
    "XAmzContentSHA256Mismatch",
}

_KEYS = "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or AWS_PROFILE), and that they belong to this endpoint"
_RENEW = "get new credentials (sign in again, or renew AWS_SESSION_TOKEN), then run the same command again"
_POLICY = (
    "these credentials need s3:GetObject, s3:PutObject, s3:DeleteObject and s3:ListBucket there "
    "(without s3:ListBucket even a missing object is answered like this)"
)
_REGION = "set AWS_REGION to the region of the bucket, and AWS_ENDPOINT_URL_S3 to its server if it is not Amazon's"
_BUCKET = "create the bucket, or correct its name, AWS_REGION or AWS_ENDPOINT_URL_S3"

# Codes for which another attempt with the same settings is pointless -> what to do next.
_ACCESS = {
    "AccessDenied": _POLICY,
    "AllAccessDisabled": _POLICY,
    "403": f"{_KEYS}; {_POLICY}",
    "Forbidden": f"{_KEYS}; {_POLICY}",
    "401": _KEYS,
    "Unauthorized": _KEYS,
    "InvalidAccessKeyId": _KEYS,
    "InvalidClientTokenId": _KEYS,
    "SignatureDoesNotMatch": _KEYS,
    "InvalidSecurity": _KEYS,
    "NotSignedUp": _KEYS,
    "ExpiredToken": _RENEW,
    "InvalidToken": _RENEW,
    "TokenRefreshRequired": _RENEW,
    "RequestTimeTooSkewed": "set this machine's clock: it is too far from the server's",
    "NoSuchBucket": _BUCKET,
    "InvalidBucketName": _BUCKET,
    "301": _REGION,
    "PermanentRedirect": _REGION,
    "AuthorizationHeaderMalformed": _REGION,
    "IllegalLocationConstraintException": _REGION,
    "InvalidObjectState": "the object is archived; restore it first",
}
_MISSING = {"404", "NoSuchKey", "NotFound"}
_EXISTS = {"412", "PreconditionFailed"}
_TOO_LARGE = {"413", "EntityTooLarge", "KeyTooLongError"}
_FULL = {"507", "InsufficientStorage", "QuotaExceeded", "XMinioStorageFull", "XMinioAdminBucketQuotaExceeded"}
# Gateways over a file system have no code for this; they send the system's words with status 500.
_FULL_WORDS = re.compile(r"no space left|disk (is )?full|storage (is )?full|quota exceeded|insufficient storage", re.I)

_CREDENTIALS = (
    boto.NoCredentialsError,
    boto.PartialCredentialsError,
    boto.CredentialRetrievalError,
    boto.NoAuthTokenError,
    boto.TokenRetrievalError,
    boto.UnknownTokenProviderError,
    boto.ProfileNotFound,
    boto.ConfigParseError,
    boto.ConfigNotFound,
    boto.SSOError,
)
_UNREACHABLE = (boto.ConnectionError, boto.ConnectionClosedError, boto.ReadTimeoutError, boto.HTTPClientError)


def code_of(err: Exception) -> str:
    """The error code of a server's reply, ``""`` for anything else; a HEAD reply has only its HTTP status."""
    # Gateways answer with pages of their own, in which there is no code.
    return str(err.response.get("Error", {}).get("Code") or "") if isinstance(err, boto.ClientError) else ""


def status_of(err: Exception) -> int:
    """The HTTP status of a server's reply, 0 for anything else."""
    return err.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0) if isinstance(err, boto.ClientError) else 0


def explain(err: Exception, *, what: str, endpoint: str) -> GenworkerError:
    """Our error for ``err``, to be raised from it; ``what`` is such as ``put 'key' in s3://bucket``."""
    if isinstance(err, boto.ClientError):
        return _explain_reply(err, f"{what} at {endpoint}")
    if isinstance(err, _CREDENTIALS):
        return StoreAccessError(
            f"{what}: {err}; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or run with a "
            "role that may use the bucket"
        )
    if isinstance(err, boto.SSLError):
        return StoreError(
            f"{what} at {endpoint}: {_reason(err)}; set AWS_CA_BUNDLE if a private authority signed the server"
        )
    if isinstance(err, _UNREACHABLE):
        return StoreError(
            f"{what} at {endpoint}: {_reason(err)}; check that the server runs and can be reached from here, "
            "and AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL"
        )
    if isinstance(err, (boto.ParamValidationError, boto.InvalidDNSNameError)):
        return UsageError(f"{what}: {err}")
    return StoreError(f"{what} at {endpoint}: {_reason(err)}")


def _explain_reply(err: boto.ClientError, where: str) -> GenworkerError:
    code, status = code_of(err), str(status_of(err))
    reason = err.response.get("Error", {}).get("Message") or "no reason given"
    said = f"{where}: {reason} ({code or status})"
    if code in _MISSING:
        return ObjectMissingError(f"{where}: there is no such object")
    if {code, status} & _EXISTS:
        return ObjectExistsError(f"{where}: the key is taken and overwrite is off")
    if {code, status} & _FULL or _FULL_WORDS.search(reason):
        return StoreFullError(f"{said}; make space there or choose another place, then run the same command again")
    if {code, status} & _TOO_LARGE:
        return UsageError(f"{said}; the store takes no such object: use fewer samples per shard, or a shorter key")
    if advice := _ACCESS.get(code) or _ACCESS.get(status):
        return StoreAccessError(f"{said}; {advice}")
    attempts = 1 + err.response.get("ResponseMetadata", {}).get("RetryAttempts", 0)
    return StoreError(
        f"{said} after {attempts} attempts; run the same command again when the server is well, or let requests be tried more "
        "often with AWS_MAX_ATTEMPTS"
    )


def _reason(err: Exception) -> str:
    # botocore quotes the request's URL, in which somebody may have put a password.
    return re.sub(r"://[^/@\s\"']*@", "://", f"{type(err).__name__}: {err}")
