"""Turns ``s3://BUCKET/KEY`` into https requests, anonymous or signed.

Anonymous reading needs no library: an object is a file behind https. Signing is botocore's, on the same requests.
"""

from __future__ import annotations

import os
import re
from typing import Any
from urllib.parse import quote, urlsplit
from xml.etree import ElementTree

import requests

from embedcache.errors import InputError, StorageError
from embedcache.remote.address import without_password
from embedcache.remote.bodies import reason_of
from embedcache.remote.sources import TIMEOUT_SECONDS, HttpSource, RefusedError, again_and_again

OPEN_BUCKETS = ("vesuvius-challenge-open-data",)
"""Buckets that everybody may read: asked without credentials, whatever the environment says."""

DEFAULT_REGION = "us-east-1"

CREDENTIALS = ("AWS_ACCESS_KEY_ID", "AWS_PROFILE", "AWS_WEB_IDENTITY_TOKEN_FILE")
"""Variables that say that somebody means to sign."""

KEYS_HINT = (
    "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE (pip install 'embedcache[remote]')."
)


class S3Source(HttpSource):
    """A folder of a bucket.

    The endpoint is $AWS_ENDPOINT_URL_S3 or $AWS_ENDPOINT_URL where one is set, else Amazon's; the region
    $AWS_REGION or $AWS_DEFAULT_REGION, else us-east-1, else what Amazon answers.

    Parameters
    ----------
    url : str
        ``s3://BUCKET/KEY``.
    anon : bool, optional
        Whether to ask without credentials. By default open buckets are, and others where no credentials are found.

    Raises
    ------
    InputError
        When the address names no bucket, or requests cannot be signed.
    """

    def __init__(self, url: str, *, anon: bool | None = None) -> None:
        parts = urlsplit(url)
        self.bucket, self.key = parts.netloc.rpartition("@")[2], parts.path.strip("/")
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}", self.bucket):
            raise InputError(f"{without_password(url)} names no bucket; expected s3://BUCKET/KEY.")
        super().__init__(url)
        self._shown = f"s3://{self.bucket}"
        self._region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or DEFAULT_REGION
        self._endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        self._credentials = None if anon or (anon is None and self.bucket in OPEN_BUCKETS) else _credentials()
        if anon is False and self._credentials is None:
            raise InputError(f"{self._shown}: no credentials were found to sign with.", hint=KEYS_HINT)

    @property
    def identity(self) -> str:
        """See :class:`~embedcache.remote.sources.Source`: another endpoint has other buckets."""
        return f"{self._endpoint or ''} {self._shown}/{self.key}"

    def names(self, folder: str) -> list[str] | None:
        """See :class:`~embedcache.remote.sources.Source`; None where listing is refused."""
        prefix = "/".join(part for part in (self.key, folder.strip("/")) if part)
        found: list[str] = []
        token = ""
        while True:
            listing = self._list(f"{prefix}/" if prefix else "", token)
            if listing is None:
                return None
            found += [key[len(prefix) + 1 if prefix else 0 :].rstrip("/") for key in _texts(listing, "Key")]
            found += [
                name.rstrip("/").rpartition("/")[2] for name in _texts(listing, "Prefix", "CommonPrefixes")
            ]
            token = next(iter(_texts(listing, "NextContinuationToken")), "")
            if not token:
                return [name for name in found if name]

    def _list(self, prefix: str, token: str) -> ElementTree.Element | None:
        query = f"list-type=2&delimiter=%2F&prefix={quote(prefix, safe='')}"
        query += f"&continuation-token={quote(token, safe='')}" if token else ""

        def fetch() -> ElementTree.Element | None:
            with self._get(f"{self._base()}/?{query}", {}) as answer:
                if answer.status_code in (403, 404, 405):
                    return None
                answer.raise_for_status()
                return ElementTree.fromstring(answer.content)

        return again_and_again(fetch, f"{self._shown}/{prefix}")

    def _ask(self, name: str, headers: dict[str, str]) -> requests.Response:
        answer = self._get(self._address(name), headers)
        region = answer.headers.get("x-amz-bucket-region")
        if answer.status_code in (301, 307, 400) and region and region != self._region and not self._endpoint:
            answer.close()
            self._region = region  # from here on, it is asked there at once
            answer = self._get(self._address(name), headers)
        return answer

    def _get(self, address: str, headers: dict[str, str]) -> requests.Response:
        # A signature is good for one host: where a redirect leads is asked anew, if it is a region.
        return self._session.get(
            address, headers=headers, timeout=TIMEOUT_SECONDS, stream=True, auth=self._auth(),
            allow_redirects=False,
        )  # fmt: skip

    def _auth(self) -> requests.auth.AuthBase | None:
        return None if self._credentials is None else _Signature(self._credentials, self._region)

    def _base(self) -> str:
        if self._endpoint:
            return f"{self._endpoint.rstrip('/')}/{self.bucket}"
        if "." in self.bucket:  # no certificate is for a host of more dots
            return f"https://s3.{self._region}.amazonaws.com/{self.bucket}"
        return f"https://{self.bucket}.s3.{self._region}.amazonaws.com"

    def _address(self, name: str) -> str:
        path = "/".join(part for part in (self.key, name) if part)
        return f"{self._base()}/{quote(path, safe='/-_.~')}"

    def _require_found(self, answer: requests.Response, name: str) -> None:
        status = answer.status_code
        where = f"{self._shown}/{'/'.join(part for part in (self.key, name) if part)}"
        if status < 300 or status in (408, 429) or status >= 500:
            return answer.raise_for_status()
        reason = reason_of(answer)
        if reason == "NoSuchBucket":
            raise StorageError(
                f"{where} cannot be read: there is no bucket {self.bucket}.", hint="Look at the address."
            )
        if status in (404, 410):
            raise FileNotFoundError(where)
        how = "anonymous reading" if self._credentials is None else "these credentials"
        said = f", {reason}" if reason not in ("", "AccessDenied") else ""
        raise RefusedError(
            f"{where}: the server refuses ({status}{said}) {how}.",
            status=status,
            reason=reason,
            hint=KEYS_HINT if self._credentials is None else "Look at the keys, and at what they may read.",
        )


class _Signature(requests.auth.AuthBase):
    """Signs a request as it is sent: signatures age."""

    def __init__(self, credentials: Any, region: str) -> None:
        self._credentials, self._region = credentials, region

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        from botocore.auth import S3SigV4Auth
        from botocore.awsrequest import AWSRequest

        signed = AWSRequest(method=request.method, url=request.url, headers=_signed_headers(request))
        S3SigV4Auth(self._credentials.get_frozen_credentials(), "s3", self._region).add_auth(signed)
        request.headers.update(dict(signed.headers.items()))
        return request


def _signed_headers(request: requests.PreparedRequest) -> dict[str, str]:
    """Those that matter; a proxy may change the others."""
    return {name: value for name, value in request.headers.items() if name.lower() == "range"}


def _credentials() -> Any:
    """What botocore finds in the environment, in ``~/.aws`` or of the machine; None for nothing."""
    try:
        from botocore.exceptions import BotoCoreError
        from botocore.session import Session
    except ImportError as error:
        meant = [name for name in CREDENTIALS if os.environ.get(name)]
        if not meant:
            return None
        raise InputError(
            f"{meant[0]} is set, but signing requests to S3 needs botocore, which is not installed.",
            hint="Install it with: pip install 'embedcache[remote]', or ask without credentials by --anon.",
        ) from error
    try:
        return Session().get_credentials()
    except BotoCoreError as error:
        raise InputError(f"The credentials for S3 cannot be used: {error}.", hint=KEYS_HINT) from error


def _texts(listing: ElementTree.Element, tag: str, inside: str | None = None) -> list[str]:
    """Texts of the elements of a name, whatever their namespace."""
    holders = [item for item in listing.iter() if _plain(item) == (inside or "Contents")]
    if tag == "NextContinuationToken":
        holders = [listing]
    return [child.text or "" for holder in holders for child in holder if _plain(child) == tag]


def _plain(element: ElementTree.Element) -> str:
    return element.tag.rpartition("}")[2]
