"""From the URL of an object store to a client of it: which bucket, whose credentials."""

from __future__ import annotations

import configparser
import contextlib
import os
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sonde.errors import StoreError

if TYPE_CHECKING:
    from obstore.store import ObjectStore

_CONNECT_SECONDS = 5.0
_METADATA_SECONDS = 1.0
_AZURE = "core.windows.net"


@dataclass(frozen=True, slots=True)
class _Provider:
    """A kind of object store: how it is asked for, and how it is known that somebody is allowed to."""

    example: str
    credentials: tuple[str, ...]
    files: tuple[str, ...]
    remedy: str
    metadata: tuple[str, str, Mapping[str, str]]


_PROVIDERS = {
    "s3": _Provider(
        "s3://bucket/run.zarr",
        (
            *("AWS_ACCESS_KEY_ID", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_SKIP_SIGNATURE"),
            *("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CONTAINER_CREDENTIALS_FULL_URI"),
        ),
        (),
        "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE",
        ("PUT", "http://169.254.169.254/latest/api/token", {"X-aws-ec2-metadata-token-ttl-seconds": "60"}),
    ),
    "gs": _Provider(
        "gs://bucket/run.zarr",
        (
            *("GOOGLE_SERVICE_ACCOUNT", "GOOGLE_SERVICE_ACCOUNT_PATH", "GOOGLE_SERVICE_ACCOUNT_KEY"),
            *("GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_BEARER_TOKEN", "GOOGLE_SKIP_SIGNATURE"),
        ),
        ("~/.config/gcloud/application_default_credentials.json",),
        "GOOGLE_APPLICATION_CREDENTIALS",
        ("GET", "http://169.254.169.254/computeMetadata/v1/", {"Metadata-Flavor": "Google"}),
    ),
    "az": _Provider(
        "abfs://container@account.dfs.core.windows.net/run.zarr",
        (
            *("AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_ACCESS_KEY", "AZURE_STORAGE_MASTER_KEY"),
            *("AZURE_STORAGE_SAS_KEY", "AZURE_STORAGE_SAS_TOKEN", "AZURE_STORAGE_TOKEN", "AZURE_SKIP_SIGNATURE"),
            *("AZURE_STORAGE_CLIENT_ID", "AZURE_CLIENT_ID", "AZURE_FEDERATED_TOKEN_FILE", "AZURE_USE_AZURE_CLI"),
            *("AZURE_STORAGE_USE_EMULATOR", "AZURE_MSI_ENDPOINT", "AZURE_IDENTITY_ENDPOINT"),
        ),
        (),
        "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
        ("GET", "http://169.254.169.254/metadata/instance?api-version=2019-08-01", {"Metadata": "true"}),
    ),
}
SCHEMES = {
    **{"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs"},
    **dict.fromkeys(("az", "azure", "abfs", "abfss"), "az"),
}
"""URL scheme -> kind of object store."""


@dataclass(frozen=True, slots=True)
class Bucket:
    """A folder of a bucket (of a container, in Azure's words).

    Attributes
    ----------
    kind
        ``s3``, ``gs`` or ``az``.
    name
        The bucket.
    folder
        Path below it without slashes at its ends, taken literally; may be empty.
    account
        Host of an Azure account, ``account.dfs.core.windows.net``, where the URL names one.
    """

    kind: str
    name: str
    folder: str
    account: str = ""

    @classmethod
    def of(cls, url: str) -> Bucket:
        """Take a URL apart.

        Raises
        ------
        StoreError
            If it names no bucket, or holds credentials.
        """
        scheme, _, rest = url.partition("://")
        kind = SCHEMES[scheme]
        authority, _, folder = rest.partition("/")
        name, at, account = authority.partition("@")
        if not name or ":" in authority or (at and not (kind == "az" and account)):
            raise StoreError(
                f"{url!r} does not name a bucket: write {_PROVIDERS[kind].example}, and give credentials by "
                f"{_PROVIDERS[kind].remedy} in the environment"
            )
        return cls(kind, name, folder, account)

    def __str__(self) -> str:
        scheme, authority = ("abfss", f"{self.name}@{self.account}") if self.account else (self.kind, self.name)
        return f"{scheme}://{authority}/{self.folder}".rstrip("/")

    @property
    def remedy(self) -> str:
        """Environment variables that give credentials."""
        return _PROVIDERS[self.kind].remedy

    def connect(self, *, timeout: float, limit: float) -> tuple[ObjectStore, bool]:
        """Make a client, and say whether its requests are signed.

        Credentials are those of the environment, as every tool of the provider reads them, of S3 also the static keys
        of a profile; else those of the cloud's machine this runs on, if it answers within a second. Without any,
        requests go unsigned, and what is public can be read.

        Raises
        ------
        StoreError
            If the URL or the environment does not make a client.
        """
        from obstore.exceptions import BaseError
        from obstore.store import AzureStore, GCSStore, S3Store

        options: dict[str, Any] = self._account() | (_profile() if self.kind == "s3" else {})
        signed = self._has_credentials() or "access_key_id" in options or self._is_on_its_cloud()
        if not signed:
            options["skip_signature"] = True
        make: Any = {"s3": S3Store, "gs": GCSStore, "az": AzureStore}[self.kind]
        try:
            store: ObjectStore = make(
                self.name,
                prefix=self.folder or None,
                client_options={
                    "allow_http": True,
                    "connect_timeout": timedelta(seconds=min(_CONNECT_SECONDS, timeout)),
                    "read_timeout": timedelta(seconds=timeout),
                    "timeout": timedelta(seconds=limit),
                },
                # One policy for all, bodies that break off too: ours.
                retry_config={"max_retries": 0},
                **options,
            )
        except (BaseError, ValueError) as error:
            cause = str(error).partition("\n")[0]
            raise StoreError(f"{self} cannot be reached: {cause}; set {self.remedy}") from error
        return store, signed

    def _account(self) -> dict[str, str]:
        if not self.account:
            return {}
        account, _, domain = self.account.partition(".")
        options = {"account_name": account}
        # Clouds of their own, such as China's, have other domains; the blob service answers for both.
        suffix = domain.removeprefix("dfs.").removeprefix("blob.")
        return options | ({"endpoint": f"https://{account}.blob.{suffix}"} if suffix not in ("", _AZURE) else {})

    def _has_credentials(self) -> bool:
        provider = _PROVIDERS[self.kind]
        return any(os.environ.get(name) for name in provider.credentials) or any(
            Path(name).expanduser().is_file() for name in provider.files
        )

    def _is_on_its_cloud(self) -> bool:
        if os.environ.get("AWS_EC2_METADATA_DISABLED", "").lower() == "true" and self.kind == "s3":
            return False
        method, url, headers = _PROVIDERS[self.kind].metadata
        if self.kind == "s3" and os.environ.get("AWS_METADATA_ENDPOINT"):
            url = os.environ["AWS_METADATA_ENDPOINT"].rstrip("/") + "/latest/api/token"
        # The machine's own service: no proxy leads there.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with (
            contextlib.suppress(OSError, ValueError),
            opener.open(
                urllib.request.Request(url, method=method, headers=dict(headers)), timeout=_METADATA_SECONDS
            ) as answer,
        ):
            return bool(answer.status == 200)
        return False


def _profile() -> dict[str, str]:
    """Static keys and region of the profile of AWS's configuration files; the environment's own go before them."""
    name = os.environ.get("AWS_PROFILE") or os.environ.get("AWS_DEFAULT_PROFILE") or "default"
    files = configparser.RawConfigParser()
    found: dict[str, str] = {}
    for variable, path, section in (
        ("AWS_CONFIG_FILE", "~/.aws/config", name if name == "default" else f"profile {name}"),
        ("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials", name),
    ):
        with contextlib.suppress(configparser.Error, UnicodeDecodeError):
            files.read(Path(os.environ.get(variable) or path).expanduser(), encoding="utf-8")
        if files.has_section(section):
            found |= dict(files.items(section))
    options: dict[str, str] = {}
    if "region" in found and not (os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")):
        options["region"] = found["region"]
    if not os.environ.get("AWS_ACCESS_KEY_ID"):
        keys = {"aws_access_key_id", "aws_secret_access_key", "aws_session_token"} & set(found)
        if {"aws_access_key_id", "aws_secret_access_key"} <= keys:
            options |= {key.removeprefix("aws_"): found[key] for key in keys}
    return options
