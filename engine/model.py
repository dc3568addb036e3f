"""Loading a frozen model and its processor."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sonde.errors import ModelError

from .config import ModelSection
from .models import Loaded, find_port
from .structure import Blocks, count_positions, find_blocks

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

# Heads that no captured activation depends on; a checkpoint may lack them.
_UNUSED_HEADS = ("pooler", "lm_head", "classifier", "score", "cls")
# Models whose checkpoints hold the weights under the names of the class with the head, which the class without lacks.
_LOADED_WITH_HEAD = ("instructblip",)


@dataclass(frozen=True, slots=True, eq=False)
class Model:
    """A frozen model, ready to run.

    Attributes
    ----------
    module
        The base model, without head, in evaluation mode on its device.
    processor
        Its processor (image-text models) or tokenizer.
    blocks
        Its stack of blocks.
    provenance
        What the store records: name, revision, class, dtype, attention kernel, weights and their fingerprint.
    runs_on
        Device of what runs in the module's place, where its own parameters are nowhere.
    longest
        Most tokens that this takes, where that is less than the model has positions for.
    """

    module: Any
    processor: Any
    blocks: Blocks
    provenance: Mapping[str, Any]
    runs_on: torch.device | None = None
    longest: int | None = None

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        device: torch.device = self.runs_on or self.module.device
        return device

    @property
    def n_layers(self) -> int:
        """Number of blocks."""
        return len(self.blocks.layers)

    @property
    def takes_images(self) -> bool:
        """Whether the processor prepares images."""
        return hasattr(self.processor, "image_processor")

    @property
    def max_length(self) -> int | None:
        """Most tokens that the model and its tokenizer have positions for, where they say so."""
        positions = count_positions(self.module)
        tokenizer = getattr(self.processor, "tokenizer", self.processor)
        return min(filter(None, (positions, tokenizer.model_max_length, self.longest)), default=None)

    @property
    def image_token_id(self) -> int | None:
        """Id of the token that stands for image content in the input, where there is one."""
        for name in ("image_token_id", "image_token_index"):
            value: int | None = getattr(self.module.config, name, None)
            if value is not None:
                return value
        return None


def load_model(section: ModelSection) -> Model:
    """Load a model and its processor with transformers.

    Raises
    ------
    ModelError
        If there is no such model, weights are missing from its checkpoint, its blocks cannot be found, or the device
        is not there.
    """
    device = _device(section.device)
    port = find_port(section.name)
    loaded = port.load(port.folder(section), section) if port else load_native(section)
    module = loaded.module.eval().requires_grad_(False).to(device)
    blocks = find_blocks(module)
    provenance = {
        "name": section.name,
        "revision": section.revision or getattr(module.config, "_commit_hash", None),
        "class": type(module).__name__,
        "blocks": blocks.path,
        "n_layers": len(blocks.layers),
        "dtype": section.dtype,
        "attention": getattr(module.config, "_attn_implementation", None),
        "weights": section.weights,
        "fingerprint": fingerprint(module.named_parameters()),
        **loaded.facts,
    }
    return Model(module, loaded.processor, blocks, provenance)


def load_native(section: ModelSection, *, skeleton: bool = False) -> Loaded:
    """Load a model that transformers knows.

    Parameters
    ----------
    skeleton
        Whether its parameters are nowhere, without values; its checkpoint is looked through all the same.

    Raises
    ------
    ModelError
        If there is no such model, or weights are missing from its checkpoint.
    """
    import torch
    import transformers
    from safetensors import SafetensorError

    where = checked_name(section.name)
    options: dict[str, Any] = {"revision": section.revision, "trust_remote_code": section.trust_remote_code}
    try:
        with quiet():
            config = transformers.AutoConfig.from_pretrained(where, **options)
            processor = _load_processor(where, config, options)
        dtype = getattr(torch, section.dtype)
        with_head = config.model_type in _LOADED_WITH_HEAD
        auto: Any = transformers.AutoModelForImageTextToText if with_head else transformers.AutoModel
        kernel = {"attn_implementation": section.attention} if section.attention else {}
        if section.weights == "random":
            # Seeding seeds every device.
            devices = range(torch.cuda.device_count())
            with torch.random.fork_rng(devices), torch.device("meta") if skeleton else nullcontext():
                torch.manual_seed(section.seed)
                module = auto.from_config(config, dtype=dtype, trust_remote_code=section.trust_remote_code, **kernel)
        else:
            # Weights of another shape are let through here, because the check below names them.
            options |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
            options |= {"device_map": "meta"} if skeleton else {}
            with quiet():
                module, loading = auto.from_pretrained(where, config=config, dtype=dtype, **options, **kernel)
            _check_loading(section.name, loading)
    except ModelError:
        raise
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        remedy = "" if Path(where).is_dir() else "; give a hub id that can be reached, or a folder with a config.json"
        raise ModelError(f"cannot load the model {section.name!r}: {reason.rstrip('.')}{remedy}") from error
    return Loaded(module, processor)


@contextmanager
def quiet() -> Iterator[None]:
    """Hold back transformers' progress bars and load reports; what matters in them is checked here."""
    from transformers.utils import logging as reports

    level, bar = reports.get_verbosity(), reports.is_progress_bar_enabled()
    reports.set_verbosity_error()
    reports.disable_progress_bar()
    try:
        yield
    finally:
        reports.set_verbosity(level)
        if bar:
            reports.enable_progress_bar()


def fingerprint(parameters: Iterable[tuple[str, torch.Tensor]]) -> str:
    """Digest of a model's parameters: names, shapes and up to 1,024 evenly spaced values of each."""
    import torch

    digest = hashlib.sha256()
    for name, parameter in sorted(parameters, key=lambda named: named[0]):
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode())
        flat = parameter.detach().reshape(-1)
        sample = flat[:: max(1, flat.numel() // 1024)][:1024]
        digest.update(sample.to("cpu", torch.float32).numpy().tobytes())
    return digest.hexdigest()


def checked_name(name: str) -> str:
    """Return the path of a model's folder, or a name on the hub as it is; ModelError if it is neither."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ModelError(
                f"the folder {name!r} holds no model: it has no config.json; give one that has, or a hub id"
            )
        return str(folder)
    if folder.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise ModelError(f"there is no model folder {name!r}; give a folder with a config.json, or a hub id")
    return name


def _device(wanted: str | None) -> torch.device:
    import torch

    try:
        device = torch.device(wanted or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ModelError(
            f"the device {wanted!r} cannot be used: {reason}; leave model.device out, or say cpu"
        ) from error
    return device


def _load_processor(where: str, config: Any, options: Mapping[str, Any]) -> Any:
    import transformers

    if hasattr(config, "vision_config"):
        return transformers.AutoProcessor.from_pretrained(where, **options)
    return transformers.AutoTokenizer.from_pretrained(where, **options)


def _check_loading(name: str, loading: Mapping[str, Any]) -> None:
    mismatched = sorted(str(key[0] if isinstance(key, tuple) else key) for key in loading.get("mismatched_keys", ()))
    missing = sorted(k for k in loading.get("missing_keys", ()) if not any(h in k.split(".") for h in _UNUSED_HEADS))
    for what, keys in (("lacks", missing), ("has another shape for", mismatched)):
        if keys:
            more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
            raise ModelError(
                f"the checkpoint of {name!r} {what} {keys[0]!r}{more}: these weights would be random; "
                'give a whole checkpoint, or say model.weights = "random" if that is meant'
            )
