"""What the schedulers share: which row a call is, the noise, and the tensors that ops take."""

from __future__ import annotations

import importlib
import pickle
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers.utils import DummyObject
from torch import Tensor

from ...loop.checks import has_output_shape, with_variance
from ...tables.table import DeviceTable, StepTable
from ._flow import read_flow_config
from ._noise import Generators, Noise, check_ids, unused_address

MODULE = "ardiff.integrations.diffusers"
NAMES = (
    "FusedDDIMScheduler", "FusedDDPMScheduler", "FusedDPMSolverMultistepScheduler",
    "FusedEulerAncestralDiscreteScheduler", "FusedEulerDiscreteScheduler", "FusedLCMScheduler",
    "FusedUniPCMultistepScheduler", "RTKULDScheduler", "RTKMALAScheduler", "TableScheduler",
)  # fmt: skip
COMPATIBLES = [*(e.name for e in diffusers.schedulers.KarrasDiffusionSchedulers), *NAMES]
CACHED_TABLES = 16  # models that sample token by token set the same schedule again and again
STATE_DTYPES = (torch.float32, torch.bfloat16)


class Placed:
    """A table on a device, with its rows' indices as tensors `[1]`."""

    def __init__(self, table: StepTable, device: torch.device) -> None:
        self.table, self.device = table, device
        on_device: DeviceTable = table.to(device)
        self.coef, self.row = on_device.coef, on_device.row.split(1)


class FusedScheduler:
    """Mixed into the schedulers.

    A configuration changed by `register_to_config` or in place counts from the next `set_timesteps`
    on. Between `set_timesteps` and the last step of a run, a change is refused by `step`.

    Attributes:
        seed: where set, the key of the steps' noise; generators are then not used for it.
        sample_ids: where set, the ids of a batch's rows, which with the key or generator address
            their noise: a sample is the same alone and in any batch.
    """

    _compatibles = COMPATIBLES
    order = 1
    seed: int | None = None
    _sample_ids: tuple[int, ...] | None = None
    _step_index: int | None = None
    _begin_index: int | None = None
    _own_timesteps: Tensor | None = None
    _address_of_timesteps: tuple[int, int, int] | None = None
    _device = torch.device("cpu")  # of the last samples
    _config: object = None  # the configuration of the run
    _config_key = b""

    @property
    def sample_ids(self) -> tuple[int, ...] | None:
        return self._sample_ids

    @sample_ids.setter
    def sample_ids(self, value: Sequence[int] | Tensor | None) -> None:
        self._sample_ids = check_ids(value)

    @property
    def step_index(self) -> int | None:
        """Index of the next call within `timesteps`; None before the first."""
        return self._step_index

    @property
    def begin_index(self) -> int | None:
        """Index of the first call, where a pipeline has set it."""
        return self._begin_index

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Begin at this index of `timesteps`, as pipelines that start from an image do."""
        self._begin_index = begin_index

    @classmethod
    def _get_compatibles(cls) -> list[type]:
        ours = importlib.import_module(MODULE)
        theirs = [c for c in super()._get_compatibles() if not isinstance(c, DummyObject)]
        return [*theirs, *(getattr(ours, name) for name in NAMES)]

    @classmethod
    def extract_init_dict(cls, config_dict: dict, **options) -> tuple:
        """As `ConfigMixin`'s, for configurations of flow matching schedulers too."""
        return super().extract_init_dict(read_flow_config(config_dict), **options)

    def _add_noise(self, x0: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        raise NotImplementedError

    def _check_config(self) -> None:
        """Raises ValueError for options out of range."""
        raise NotImplementedError

    def _follow_config(self) -> None:
        """Check the configuration where it changed. All that is made of it is cached under it."""
        key = pickle.dumps(vars(self.config))  # by value: lists and dictionaries may be written
        if key != self._config_key:
            self._check_config()
            self._config_key = key
        self._config = self.config

    def _config_changed(self) -> None:
        raise ValueError(
            f"the configuration of {type(self).__name__} was changed after set_timesteps: call "
            "set_timesteps again, which begins a new run"
        )

    def _restart(
        self, begin_index: int | None = None, device: torch.device | str | None = None
    ) -> None:
        """Begin with the `timesteps` on the host, which go to `device` where one is named."""
        if self._config is not self.config:
            self._follow_config()
        self._step_index, self._begin_index = None, begin_index
        self._rows: Placed | None = None
        self._index_of: dict[float, int] | None = None
        self._host_timesteps = self.timesteps.tolist()
        self.timesteps = self._own_timesteps = self.timesteps.to(device)
        self._find_timesteps()
        self._noise = Noise()
        self._rows_on(self._device if device is None else torch.device(device))

    def _find_timesteps(self) -> None:
        own = self._own_timesteps
        self._address_of_timesteps = (
            None if own is None or own.is_meta else (own.data_ptr(), own.element_size(), len(own))
        )

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._find_timesteps()  # a copy has timesteps of its own

    def _rows_on(self, device: torch.device) -> Placed:
        """The table on the device of the samples; it is made where there is none."""
        if self._own_timesteps is None:
            self._restart(self._begin_index)
        if self._config is not self.config:
            self._config_changed()
        if self._rows is None or self._rows.device != device:
            table = self._make_table() if self._rows is None else self._rows.table
            self._rows, self._device = self._place(table, device), device
        return self._rows

    def _place(self, table: StepTable, device: torch.device) -> Placed:
        return Placed(table, device)

    def _cached(self, place: tuple, make: Callable[[], Any]) -> Any:
        """What `make` makes, kept for this scheduler under its configuration and `place`."""
        place = (self._config_key, *place)
        if "_made_tables" not in self.__dict__:
            self._made_tables: dict = {}
        if place not in self._made_tables:
            if len(self._made_tables) >= CACHED_TABLES:
                self._made_tables.clear()
            self._made_tables[place] = make()
        return self._made_tables[place]

    def _view_index(self, timestep: object) -> int | None:
        """The index of an element of `timesteps`, from where it lies: no value is read."""
        if self._address_of_timesteps is None or not isinstance(timestep, Tensor):
            return None
        begin, size, count = self._address_of_timesteps
        place, rest = divmod(timestep.data_ptr() - begin, size)
        # the tensor is kept, so that nothing else can lie in its memory
        return place if rest == 0 and 0 <= place < count and timestep.numel() == 1 else None

    def index_for_timestep(self, timestep, schedule_timesteps: Tensor | None = None) -> int:
        """The first index of a timestep in the schedule; ValueError where it is not in it.

        An element of `timesteps` is known by its place. The value of any other tensor is read,
        which waits for its device.
        """
        index = self._view_index(timestep) if schedule_timesteps is None else None
        if index is not None:
            return index
        value = float(timestep)
        if schedule_timesteps is not None:
            places = _first_places(schedule_timesteps.tolist())
        else:
            if self._own_timesteps is None:
                self._restart(self._begin_index)
            if self._index_of is None:
                self._index_of = _first_places(self._host_timesteps)
            places = self._index_of
        if value not in places:
            raise ValueError(f"timestep {value:g} is not in the schedule; call set_timesteps first")
        return places[value]

    def _first_index(self, timestep) -> int:
        """Where a run begins. A device tensor of unknown origin is not read: it begins at 0."""
        if self._begin_index is not None:
            return self._begin_index
        index = self._view_index(timestep)
        if index is not None:
            return index
        if isinstance(timestep, Tensor) and timestep.device.type != "cpu":
            return 0
        return self.index_for_timestep(timestep)

    def _address(
        self, index: int, generator: Generators, sample_ids, sample: Tensor, draws: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Key and streams of the noise of a step; where none is drawn no generator moves."""
        if not draws:
            return unused_address(len(sample), sample.device)
        ids = self._sample_ids if sample_ids is None else check_ids(sample_ids)
        return self._noise.address(index, generator, self.seed, ids, sample.shape[0], sample.device)

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """alpha x0 + sigma noise at the timesteps `[B]`, computed in float32 at least.

        In half precision alpha rounds to 1 at small timesteps, and sigma then to 0.
        """
        return in_float32(self._add_noise, original_samples, noise, timesteps)

    def scale_noise(self, sample: Tensor, timestep: Tensor, noise: Tensor) -> Tensor:
        """:meth:`add_noise` by the name and order of arguments of flow matching schedulers."""
        return self.add_noise(sample, noise, timestep)


def in_float32(make: Callable[..., Tensor], a: Tensor, b: Tensor, timesteps: Tensor) -> Tensor:
    """`make` on float32 copies of half-precision tensors, in the dtype of `a`."""
    wide = torch.promote_types(a.dtype, torch.float32)
    return make(a.to(wide), b.to(wide), timesteps).to(a.dtype)


def check_spacing(timesteps: np.ndarray, count: int, config: Any) -> np.ndarray:
    """The first `count` of timesteps that diffusers has spaced.

    Its ``trailing`` makes one more, at -1, for 62 of the counts up to 1000, where count steps of
    N / count add up to less than N in floating point.

    Raises:
        ValueError: a timestep beyond the training's, or ``leading`` steps of length 0.
    """
    kept, last = timesteps[:count], config.num_train_timesteps - 1
    standing = config.timestep_spacing == "leading" and count > 1 and kept[0] == kept[-1]
    if standing or kept[0] > last:
        what = "leaves steps of length 0" if standing else f"begins at timestep {kept[0]:g}"
        raise ValueError(
            f"num_inference_steps={count} with timestep_spacing={config.timestep_spacing!r} and "
            f"steps_offset={config.steps_offset} {what}, the training timesteps are 0 to {last}: "
            "ask for fewer steps, or for timestep_spacing='trailing'"
        )
    return kept


def _first_places(timesteps: list[float]) -> dict[float, int]:
    return {float(t): i for i, t in reversed(list(enumerate(timesteps)))}


def check_shapes(model_output: Tensor, sample: Tensor, doubled: bool) -> None:
    """ValueError unless the output has the sample's shape, or twice its channels where allowed."""
    if has_output_shape(model_output, sample.shape, doubled):
        return
    expected, wide = sample.shape, with_variance(sample.shape)
    also = f" or {list(wide)}" if doubled and wide else ""
    raise ValueError(
        f"model_output must have the shape {list(expected)}{also} of the sample, got "
        f"{list(model_output.shape)}"
    )


def output(kind: type, **values: Tensor) -> Any:
    """`kind(**values)` of a diffusers output class, without checks that take as long as an op."""
    made = kind.__new__(kind)
    made.__dict__.update(values)
    for name, value in values.items():
        OrderedDict.__setitem__(made, name, value)
    return made


def as_state(t: Tensor, dtypes: Sequence[torch.dtype] = STATE_DTYPES) -> Tensor:
    """A tensor whose rows the ops can read; itself where they can."""
    if t.dtype not in dtypes:
        t = t.float()
    return t if t.is_contiguous() else t.contiguous()


def as_output(t: Tensor) -> Tensor:
    """A model output that the ops can read."""
    if t.dtype == torch.float64:
        t = t.float()
    return t if t.is_contiguous() else t.contiguous()


def threshold(x0: Tensor, ratio: float, largest: float) -> Tensor:
    """Dynamic thresholding of a data prediction (Saharia et al. 2022), each sample by itself."""
    rows = x0.flatten(1).float()
    limit = rows.abs().quantile(ratio, dim=1, keepdim=True).clamp(1, largest)
    return (rows.clamp(-limit, limit) / limit).to(x0.dtype).view(x0.shape)
