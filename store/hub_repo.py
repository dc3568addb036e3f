"""One dataset repository of the Hugging Face Hub, and what its client raises in words of ours."""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sonde.errors import InputError, SondeError, StoreError

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.hf_api import RepoFile

_KIND = "dataset"
_BUSY = (429, 500, 502, 503, 504)
_WAITS = (1, 2, 4, 8, 16)
# The Hub's own rules, with the owner that its client lets one leave out.
_NAME = r"\w(?:[\w.-]{0,94}\w)?"
_ID = re.compile(rf"(?!.*(?:--|\.\.|\.git$)){_NAME}/{_NAME}", re.ASCII)


@dataclass(frozen=True, slots=True)
class HubRepo:
    """One revision of a dataset repository; ``main`` where the revision is None."""

    api: HfApi
    id: str
    revision: str | None

    @classmethod
    def of(cls, repo_id: str, revision: str | None, token: str | None, endpoint: str | None) -> HubRepo:
        """Name a repository, without asking the Hub.

        Raises
        ------
        InputError
            If ``repo_id`` is not ``owner/name``.
        """
        from huggingface_hub import HfApi

        if not _ID.fullmatch(str(repo_id)):
            raise InputError(
                f"{repo_id!r} is no id of a dataset repository: give owner/name, without `datasets/` or an address"
            )
        return cls(HfApi(endpoint=endpoint, token=token, library_name="sonde"), repo_id, revision or None)

    def __str__(self) -> str:
        return f"hf://datasets/{self.id}" + (f"@{self.revision}" if self.revision else "")

    def create(self, private: bool) -> None:
        """Make the repository and the branch unless they are there.

        Raises
        ------
        StoreError
            If it is to be private and is public.
        """
        # None, not False: an organisation may want its repositories to be private.
        self.api.create_repo(self.id, repo_type=_KIND, private=private or None, exist_ok=True)
        if private and not self.api.dataset_info(self.id, expand=["private"]).private:
            raise StoreError(f"{self} is public already: make it private in its settings, or push to another id")
        if self.revision and not self.revision.startswith("refs/"):
            self.api.create_branch(self.id, branch=self.revision, repo_type=_KIND, exist_ok=True)

    def head(self) -> str:
        """Return the commit that the revision names."""
        commit = self.api.dataset_info(self.id, revision=self.revision, expand=["sha"], timeout=60).sha
        if commit is None:
            raise StoreError(f"{self} names no commit: check what HF_ENDPOINT points at")
        return commit

    def files(self, commit: str) -> dict[str, RepoFile]:
        """List a commit by path: size and hash of every file."""
        from huggingface_hub.hf_api import RepoFile

        tree = self.api.list_repo_tree(self.id, recursive=True, revision=commit, repo_type=_KIND)
        return {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}

    def read(self, key: str, commit: str) -> bytes:
        """Whole content of a small file."""
        with tempfile.TemporaryDirectory() as folder:
            path = self.api.hf_hub_download(self.id, key, repo_type=_KIND, revision=commit, local_dir=folder)
            return Path(path).read_bytes()

    def commit(self, title: str, add: Mapping[str, Path | bytes], remove: Iterable[str] = ()) -> str:
        """Add and remove files, all or nothing, and return the URL of the commit; what is there already is not sent."""
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        def send() -> str:
            operations: list[CommitOperationAdd | CommitOperationDelete] = []
            operations += [CommitOperationDelete(key, is_folder=False) for key in sorted(remove)]
            operations += [CommitOperationAdd(key, content) for key, content in add.items()]
            return self.api.create_commit(
                self.id, operations, commit_message=title, repo_type=_KIND, revision=self.revision
            ).commit_url

        return _persist(send)

    def download(self, commit: str, folder: Path, patterns: Sequence[str]) -> None:
        """Fetch the files of a commit that match one of ``patterns`` and are not hidden."""
        _persist(
            lambda: self.api.snapshot_download(
                self.id,
                repo_type=_KIND,
                revision=commit,
                local_dir=folder,
                allow_patterns=list(patterns),
                ignore_patterns=[".*", "*/.*"],
            )
        )


def _persist(call: Callable[[], str]) -> str:
    """Make a call that may be repeated again while the Hub is busy: its client gives up on some of these at once."""
    from huggingface_hub.errors import HfHubHTTPError

    for seconds in _WAITS:
        try:
            return call()
        except HfHubHTTPError as error:
            if error.response.status_code not in _BUSY:
                raise
            time.sleep(seconds)
    return call()


@contextmanager
def clear_errors(repo: HubRepo) -> Iterator[None]:
    """Turn what the client raises into a StoreError that says what to do; a full disk stays an OSError."""
    try:
        yield
    except SondeError:
        raise
    except Exception as error:
        # The disk's own errors have a number, the client's have none.
        from_disk = isinstance(error, OSError) and error.errno is not None
        if from_disk or not (_is_http(error) or isinstance(error, OSError | RuntimeError | ValueError)):
            raise
        raise StoreError(_explain(repo, error)) from error


def _explain(repo: HubRepo, error: BaseException) -> str:
    from huggingface_hub import errors

    cause: BaseException | None = error
    while cause is not None:
        status = cause.response.status_code if isinstance(cause, errors.HfHubHTTPError) else None
        match cause:
            case errors.GatedRepoError():
                return f"{repo} is gated: ask for access on its page, and log in with `hf auth login`"
            case errors.RevisionNotFoundError():
                return f"{repo} does not exist: give a branch, a tag or a commit that is in the repository"
            case errors.HfHubHTTPError() if _is_missing(cause):
                return f"{repo} does not exist or is not open to you: check the id, and log in with `hf auth login`"
            case errors.HfHubHTTPError() if status in (401, 403):
                return f"{repo}: the Hub refuses ({status}): log in by `hf auth login` with a token that may do this"
            case errors.HfHubHTTPError():
                return (
                    f"{repo}: the Hub answered {status} ({_first_line(cause)}); try again, it goes on where it stopped"
                )
            case errors.OfflineModeIsEnabled():
                return f"{repo} cannot be reached: HF_HUB_OFFLINE switches the Hub off; unset it and try again"
            case _ if _is_http(cause):
                return (
                    f"{repo}: {repo.api.endpoint} cannot be reached ({_first_line(cause)}); check the network and "
                    "HF_ENDPOINT and try again, it goes on where it stopped"
                )
        cause = cause.__cause__
    return f"{repo}: the transfer failed ({_first_line(error)}); try again, it goes on where it stopped"


def _is_missing(error: HfHubHTTPError) -> bool:
    from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError

    # The Hub answers 401 to strangers, so that they do not learn what there is.
    nothing = error.response.status_code == 404 and not isinstance(error, EntryNotFoundError)
    return nothing or isinstance(error, RepositoryNotFoundError)


def _is_http(error: BaseException) -> bool:
    # Which HTTP library the client has, httpx or httpx2, is a matter of its version.
    return type(error).__module__.partition(".")[0].startswith("httpx")


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
