"""What goes wrong for a user: every error says what was wrong, the value, and the way out."""


class SondeError(Exception):
    """Base of all errors that sonde raises on purpose; the command line prints them as one line."""


class InputError(SondeError, ValueError):
    """Data, labels, a configuration or an option that cannot be used as given."""


class ModelError(SondeError):
    """A model that cannot be loaded, or that lacks what was asked of it."""


class StoreError(SondeError):
    """A store that is missing, unfinished, of another kind, or in the way."""


class CorruptStoreError(StoreError):
    """Bytes of a store that are not what its commit says they are."""


class ProbeError(SondeError):
    """A probe that cannot be fitted, saved or applied."""


class WorkerError(SondeError):
    """Worker processes that died again and again."""
