"""A small copy of every upstream on 127.0.0.1: the upstreams' file names, formats, and faults.

    with Miniature(rows=240) as miniature:
        os.environ.update(miniature.env)   # then `datakit fetch llava665k` needs no network
        ...
        miniature.requests                 # what was asked for
        miniature.expected                 # what a correct tool keeps and drops

The same arguments give the same bytes. Nothing is made before it is asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from datakit.errors import UsageError, nearest
from datakit.miniature import coyo, flan, llava, mmc4, plain
from datakit.miniature.coyo import CoyoExpected, choose
from datakit.miniature.coyo import parquet as coyo_parquet
from datakit.miniature.flan import FlanExpected
from datakit.miniature.instruct import InstructExpected
from datakit.miniature.mmc4 import MMC4Expected
from datakit.miniature.real import Real
from datakit.miniature.server import Answer, Request, Server
from datakit.miniature.upstreams import DATASETS, Change, Upstreams
from datakit.miniature.world import World

__all__ = [
    "Answer",
    "Request",
    "CoyoExpected",
    "Expected",
    "FlanExpected",
    "InstructExpected",
    "MMC4Expected",
    "Miniature",
    "choose",
    "coyo_parquet",
]


@dataclass(frozen=True)
class Expected:
    """What a correct tool finds here, made on demand; changes by `replace` are not in it."""

    _world: World

    def of(self, name: str) -> InstructExpected:
        """What is expected of a dataset whose keys are row numbers, or of a subset: `mgm`, `mgm.pretrain`.

        Every archive is there, those that come by hand as well. Rows that a recipe turns down for what they say,
        such as `sa_id` and `repetition` of ShareGPT4V, are among the `faults` and kept.
        """
        dataset, _, subset = name.partition(".")
        if dataset in ("llava665k", "qinstruct") and not subset:
            return self.llava665k if dataset == "llava665k" else self.qinstruct
        if dataset not in DATASETS:
            raise UsageError(f"The miniature expects nothing of {name!r} by number; {nearest(dataset, DATASETS)}")
        return self._world.make_once(DATASETS[dataset]).expected(subset)

    @property
    def llava665k(self) -> InstructExpected:
        return self._world.make_once(llava.llava665k).expected

    @property
    def qinstruct(self) -> InstructExpected:
        return self._world.make_once(llava.qinstruct).expected

    @property
    def flan(self) -> FlanExpected:
        return flan.expected(self._world)

    def coyo(self, shard: int) -> CoyoExpected:
        return coyo.expected(coyo.rows_of(self._world, shard))

    def mmc4(self, shard: int) -> MMC4Expected:
        return mmc4.expected(self._world, shard)

    def added_dataset(self, repo: str, key: str) -> InstructExpected:
        """`example/pictures-parquet` or `example/wds`, its two files one after the other, added as dataset `key`."""
        return plain.expected(repo, key)


class Miniature:
    """The upstreams, served while the `with` block lasts.

    `rows` is the length of llava665k; qinstruct has half as many, a file of the other JSON datasets a quarter.
    `real` is a folder of photographs and texts to use among the drawings. `delay_s` is waited before each answer.
    """

    def __init__(
        self,
        *,
        rows: int = 240,
        seed: int = 0,
        real: Path | None = None,
        coyo_shards: int = 128,
        coyo_rows: int = 60,
        delay_s: float = 0.0,
        port: int = 0,
    ) -> None:
        world = World(
            rows=rows,
            seed=seed,
            real=Real(real) if real else None,
            coyo_shards=coyo_shards,
            coyo_rows=coyo_rows,
        )
        self.expected = Expected(world)
        self._upstreams = Upstreams(world)
        self._delay_s = delay_s
        self._port = port
        self._server: Server | None = None

    def __enter__(self) -> Self:
        try:
            self._server = Server(self._upstreams.answer, port=self._port, delay_s=self._delay_s)
        except OSError as error:
            raise UsageError(
                f"The miniature can't listen on port {self._port!r} of 127.0.0.1: {error.strerror}."
                " Name another port, or 0 for any."
            ) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._running.close()

    @property
    def port(self) -> int:
        return self._running.port

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def requests(self) -> list[tuple[str, str, str | None]]:
        """Method, path with query, and Range header of every request so far."""
        return self._running.requests

    @property
    def env(self) -> dict[str, str]:
        """The settings under which datakit, and the hub's own client, come here instead of the internet."""
        return {
            "HF_ENDPOINT": self.url,
            "DATAKIT_MIRRORS": f"http://={self.url}/,https://={self.url}/",
            "DATAKIT_ALLOW_HOSTS": f"127.0.0.1:{self.port}",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }

    def replace(self, path: str, to: Change, *, times: int | None = None) -> None:
        """Have another answer at a path, for the next `times` GETs or for good.

        `path` is a URL as upstream has it (`https://host/file`) or a path here (`/host/file`,
        `/datasets/OWNER/REPO/resolve/main/FILE`). Bytes take the file's place, in the hub's listings too. An
        `Answer` is sent as it is, `dataclasses.replace(m.answer(path), cut_after=1000)` for one; a function
        from `Request` to `Answer` decides each time.
        """
        self._upstreams.change(path, to, times)

    def answer(self, path: str) -> Answer:
        """What a GET at a path gets now. It isn't counted in `requests`, nor against `times`."""
        return self._upstreams.answer(Request(method="PEEK", path=self._upstreams.canonical(path)))

    @property
    def _running(self) -> Server:
        if self._server is None:
            raise UsageError("The miniature isn't serving yet; use it in a `with` block.")
        return self._server
