"""A model that vLLM runs, ready to give what a configuration asks for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from sonde.engine.batches import Batch
from sonde.engine.calibrate import default_token_budget
from sonde.engine.capture import CONNECTOR, Capture
from sonde.engine.capture import SITES as ALL_SITES
from sonde.engine.config import DataSection, ExtractConfig
from sonde.engine.recorder import States
from sonde.engine.session import Session
from sonde.errors import InputError

from .checkpoint import find_folder, load_skeleton
from .desk import Desk
from .engine import Engine, describe
from .images import Images
from .prompts import PromptEncoder, RequestBatch, RequestCollator
from .settings import cpu_arguments, engine_arguments, find_device, prepare_environment, step_arguments
from .wire import Receiver

SITES = ("embed", "resid_pre", "resid_post", CONNECTOR)
"""What vLLM gives: the residual stream between blocks."""
OTHER_SITES = tuple(site for site in ALL_SITES if site not in SITES)


@dataclass(frozen=True, slots=True, eq=False)
class VllmSession(Session):
    """A model that vLLM runs; the engine is started when the first batch is to run.

    Attributes
    ----------
    arguments
        Of the engine, for a number of tokens in a step.
    token_budget
        That number, where a run names none.
    desk
        Where the engine's connector brings the states.
    receiver
        Receives them where the engine's worker is another process; None if it is not.
    running
        The engine, once it runs.
    """

    arguments: Callable[[int], dict[str, Any]]
    token_budget: int
    desk: Desk
    receiver: Receiver | None
    running: list[Engine] = field(default_factory=list)

    @classmethod
    def prepare(cls, config: ExtractConfig) -> VllmSession:
        """Prepare all that needs no weights; errors as of `Session.open`."""
        import torch

        section, wanted, data = config.model, config.capture, config.data or DataSection()
        foreign = [site for site in wanted.sites if site in OTHER_SITES]
        if foreign:
            raise InputError(
                f"vLLM does not give {', '.join(foreign)}, only {', '.join(SITES)}: take other sites with backend = "
                '"transformers"'
            )
        prepare_environment(section)
        kind = find_device(section)
        folder = find_folder(section)
        skeleton = load_skeleton(section, folder)
        capture = Capture.plan(wanted.sites, wanted.tokens, wanted.layers, skeleton.n_layers)
        model = replace(skeleton, runs_on=torch.device(kind))
        budget = config.run.token_budget or default_token_budget(model)
        desk = Desk(capture)
        receiver = Receiver(desk) if (section.tensor_parallel or 1) > 1 else None
        told = {"desk": desk.name}
        if receiver is not None:
            told |= {"address": receiver.address, "key": receiver.key}
        fixed = engine_arguments(section, folder, desk.points, told)
        text_config, itemsize = model.module.config.get_text_config(), model.module.dtype.itemsize

        def arguments(token_budget: int) -> dict[str, Any]:
            of_cpu = cpu_arguments(text_config, token_budget, len(desk.points), itemsize) if kind == "cpu" else {}
            return fixed | step_arguments(token_budget) | of_cpu

        try:
            found = describe(arguments(budget), section.name)
            model = replace(model, longest=found.max_length)
            encoder = PromptEncoder(model, capture, data.prompt_format, data.truncate)
        except BaseException:
            desk.close()
            if receiver is not None:
                receiver.close()
            raise
        images = Images(found.config, model) if found.takes_images else None
        collate = RequestCollator(capture, encoder.pad_token_id, causal=True, images=images)
        widths = dict.fromkeys(capture.sites, found.hidden_size)
        note = "no, because vLLM runs every prompt by itself"
        return cls(model, capture, encoder, collate, widths, None, note, arguments, budget, desk, receiver)

    @property
    def calibrated(self) -> bool:
        """The engine is made for one budget."""
        return False

    def start(self, token_budget: int | None = None) -> None:
        """Start the engine, if it does not run yet."""
        if not self.running:
            engine = Engine(self.arguments(token_budget or self.token_budget), self.desk)
            self.running.append(engine)
            # The cache may hold no more.
            self.encoder.limit(engine.max_length)

    def run(self, batch: Batch) -> tuple[States, Batch]:
        """Run one batch."""
        assert isinstance(batch, RequestBatch)
        self.start()
        self.running[0].run(batch)
        return self.desk.end(), batch

    def close(self) -> None:
        """End the engine."""
        while self.running:
            self.running.pop().close()
        if self.receiver is not None:
            self.receiver.close()
        self.desk.close()
