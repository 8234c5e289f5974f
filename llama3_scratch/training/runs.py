"""A run of training that is written down as it goes: killed at any moment, it goes on with the same result.

Its folder holds `training/` (what was asked for, the vocabulary, and the state after the last saved step, which is
replaced in one go), and at the end the model in both layouts, `meta/` and `huggingface/`.
"""

import hashlib
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from ..checks import check_length, check_training_ids
from ..loading.byte_pairs import learn_vocabulary
from ..loading.export import LAYOUTS, export
from ..loading.files import RUN_NAME, RUNNING_NAME, STATE_NAME, VOCABULARY_NAME, finished_folder, read_json, write_whole
from ..loading.pth import read_pth
from ..messages import CheckpointError, short
from ..model import Llama
from ..params import ModelArgs
from ..tokenizer import Tokenizer
from . import Settings, Step, bits_per_byte, held_out, optimizer, split, train

_MOMENTS = ("exp_avg", "exp_avg_sq")  # torch's names for Adam's two averages


@dataclass(frozen=True)
class Report:
    """What is told of a run when its state was saved: steps done, the loss of the last one, and how the text that was
    held out is predicted, in nats a token and bits a byte.
    """

    steps: int
    loss: float
    held_out: float
    bits_per_byte: float


class Run:
    """One run, in a folder. `run()` begins it, or goes on; at the end `model` is trained.

    Raises CheckpointError where the folder holds a run of other settings or another text, or another process is at it.
    """

    def __init__(
        self, text: str, folder: str | Path, params: ModelArgs, settings: Settings, tied: bool = False
    ) -> None:
        self.folder, self.params, self.settings, self.tied = Path(folder).expanduser(), params, settings, tied
        self.training_text, self.held_out_text = split(text)
        self._asked = {
            **json.loads(params.to_json()),
            **json.loads(json.dumps(asdict(settings))),  # as they will be read
            "tied": tied,
            "text": hashlib.sha256(text.encode("utf-8")).hexdigest(),
        }
        self._place = self.folder / "training"
        told = self._begin()
        self.tokenizer = Tokenizer(self._place / VOCABULARY_NAME)
        # As many threads as it was begun with: sums in other parts have other last digits.
        torch.set_num_threads(told["threads"])
        self.ids, self.held_out_ids = (
            torch.tensor(self.tokenizer.encode(part)) for part in (self.training_text, self.held_out_text)
        )
        torch.manual_seed(settings.seed)
        self.model = Llama(params, tied)
        self.history: list[Step] = []

    def run(self, save_every: int = 50) -> Iterator[Report]:
        """Train to the end, telling how it stands whenever the state was saved, then write the model."""
        if save_every < 1:
            raise ValueError("save_every must be at least 1 step")
        with self._alone():
            opt = optimizer(self.model, self.settings)
            self._restore(opt)
            steps = train(self.model, self.ids, self.settings, opt, first=len(self.history))
            for step in _with_advice(steps):
                self.history.append(step)
                if len(self.history) % save_every == 0 or len(self.history) == self.settings.steps:
                    self._save(opt)
                    yield self.report()
            for layout in LAYOUTS:
                if not (self.folder / layout).is_dir():
                    export(self.model, self.tokenizer, self.folder / layout, layout)

    def report(self) -> Report:
        """How it stands now."""
        nats = held_out(self.model, self.held_out_ids, self.settings.seq_len)
        count = len(self.held_out_ids) - 1
        return Report(len(self.history), self.history[-1].loss, nats, bits_per_byte(nats, count, self.held_out_text))

    def _begin(self) -> dict[str, Any]:
        """Write down what was asked for and learn the vocabulary; or compare with what is there."""
        with finished_folder(self._place) as partial:
            if partial is not None:
                for model in (self.folder / layout for layout in LAYOUTS):
                    if model.exists():
                        raise CheckpointError(f"{model}: is there already, and not of this run; name another folder")
                check_length(self.settings.seq_len, self.params.context_len)
                learn_vocabulary(self.training_text, self.params.vocab_size, partial)
                encode = Tokenizer(partial / VOCABULARY_NAME).encode
                check_training_ids(torch.tensor(encode(self.training_text)), self.settings.seq_len)
                check_training_ids(torch.tensor(encode(self.held_out_text), dtype=torch.long), 1)
                told = {**self._asked, "threads": torch.get_num_threads()}
                write_whole(partial / RUN_NAME, json.dumps(told, indent=2) + "\n")
        path = self._place / RUN_NAME
        told = read_json(path)
        for key, value in self._asked.items():
            if (theirs := told.get(key)) != value:
                what = "another text" if key == "text" else f"{key} {short(theirs)}, and not {short(value)}"
                raise CheckpointError(f"{path}: this run was begun with {what}; name another folder for another run")
        if type(told.get("threads")) is not int or not 1 <= told["threads"] <= 4096:
            raise CheckpointError(f"{path}: threads must be a number; name another folder, or remove this one")
        return told

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """While one process trains here, another is told so. The system takes the lock back however a process ends."""
        lock = FileLock(self._place / RUNNING_NAME)
        try:
            lock.acquire(timeout=0)
        except Timeout as e:
            raise CheckpointError(
                f"{self._place}: another process is training here; wait, or name another folder"
            ) from e
        except (NotImplementedError, OSError):  # some network drives have no locks
            pass
        try:
            yield
        finally:
            lock.release()

    def _save(self, opt: torch.optim.Optimizer) -> None:
        state = {f"model.{key}": tensor for key, tensor in self.model.state_dict().items()}
        for name, parameter in self.model.named_parameters():
            state |= {f"{moment}.{name}": opt.state[parameter][moment] for moment in _MOMENTS}
        rows = [[step.loss, step.gradient_norm, step.rate] for step in self.history]
        state["history"] = torch.tensor(rows, dtype=torch.float64)
        buffer = io.BytesIO()
        torch.save(state, buffer)
        write_whole(self._place / STATE_NAME, [buffer.getbuffer()])

    def _restore(self, opt: torch.optim.Optimizer) -> None:
        """Go on from the saved state, if there is one."""
        path = self._place / STATE_NAME
        if not path.exists():
            return
        state, _ = read_pth(path)
        expected = {f"model.{key}": tensor.shape for key, tensor in self.model.state_dict().items()}
        for name, parameter in self.model.named_parameters():
            expected |= {f"{moment}.{name}": parameter.shape for moment in _MOMENTS}
        rows = state.pop("history", torch.zeros(0))
        found = {key: tensor.shape for key, tensor in state.items()}
        if found != expected or rows.ndim != 2 or rows.shape[1] != 3 or len(rows) > self.settings.steps:
            raise CheckpointError(f"{path}: not a state of this run; remove {self._place} to begin anew")
        self.model.load_state_dict({key: state[f"model.{key}"] for key in self.model.state_dict()})
        for name, parameter in self.model.named_parameters():
            moments = {moment: state[f"{moment}.{name}"].clone() for moment in _MOMENTS}
            opt.state[parameter] = {"step": torch.tensor(float(len(rows))), **moments}
        self.history = [Step(i, *row) for i, row in enumerate(rows.tolist())]


def _with_advice(steps: Iterator[Step]) -> Iterator[Step]:
    try:
        yield from steps
    except ValueError as e:
        raise ValueError(f"{e} (in another folder: this one remembers what was asked)") from e


def sample(model: Llama, tokenizer: Tokenizer, text: str, length: int = 60, temperature: float = 0.8) -> str:
    """A text that the model goes on from the first words of another."""
    from ..generation import decode_stream, generate

    start = " ".join(text.split()[:3])[:40]  # not every language has spaces
    tokens = tokenizer.encode(start, bos=tokenizer.add_bos)
    with torch.no_grad():
        ids = generate(model, tokens, length, temperature, seed=0, stop_tokens=tokenizer.stop_tokens)
        return start + "".join(decode_stream(ids, tokenizer))
