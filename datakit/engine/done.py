"""Done: which steps of a build's shards are done, by the commits in its root."""

from __future__ import annotations

from dataclasses import replace

from datakit.engine.build import Build
from datakit.engine.stage import Step
from datakit.engine.work import intact
from datakit.errors import Incomplete
from datakit.storage.ledger import Ledger
from datakit.storage.shards import shard_name


class Done:
    """Which steps of a build's shards are done.

    With `snapshot` each folder is listed once, which is faster for many shards; a process that makes shards asks the
    store each time.
    """

    def __init__(self, build: Build, *, snapshot: bool = False) -> None:
        self.build = build
        # The last step is listed first, so that a shard that another job makes meanwhile is seen with its inputs.
        self._ledgers = {step.name: build.ledger(step, snapshot=snapshot) for step in reversed(build.steps)}

    def ledger(self, step: Step) -> Ledger:
        """The commits of a step."""
        return self._ledgers[step.name]

    def known_shards(self) -> list[int]:
        """The shards that the dataset has; empty while it isn't listed, so that they aren't known yet."""
        first = self.build.steps[0]
        try:
            return first.stage.shards(self.build.work(first))
        except Incomplete:
            return []

    def inputs(self, step: Step, shard: int, *, made: bool = False) -> dict[str, str] | None:
        """The inputs of a step of a shard, as its commit names them; None when the step before isn't done.

        With `made` the inputs that it was just made from, even if the user has edited one of these files since.
        """
        build = self.build
        before = build.step_before(step)
        files = step.stage.inputs(replace(build.work(step), made=made), shard)
        commit = self.ledger(step).read(shard_name(shard))
        if files is None:  # they aren't here any more: trust what was committed
            if commit is None:
                return None
            files = {k: v for k, v in commit.inputs.items() if before is None or k != before.name}
        if before is None:
            return files
        upstream = self.ledger(before).read(shard_name(shard))
        return None if upstream is None else {before.name: upstream.digest(), **files}

    def has(self, step: Step, shard: int, *, files: bool = False) -> bool:
        """Whether a step of a shard is done. With `files`, its files must be there too, not cleaned away."""
        inputs = self.inputs(step, shard)
        if inputs is None:
            return False
        recipe = self.build.fingerprints[step.name]
        if self.ledger(step).state(shard_name(shard), recipe, inputs, gone_is_fine=not files) != "done":
            return False
        needs = step.stage.needs(self.build.work(step)) if files else []
        return all(intact(path) for path in needs)

    def stale(self, step: Step, shard: int) -> bool:
        """Whether a step of a shard was made from other inputs than there are now."""
        commit = self.ledger(step).read(shard_name(shard))
        return commit is not None and commit.inputs != self.inputs(step, shard)

    def pending_steps(self, last: Step, shard: int) -> tuple[Step, ...]:
        """The steps, up to `last`, that a shard still has to go through.

        They begin with the first that isn't done, or earlier when files that it reads were cleaned away.
        """
        path = self.build.path_to(last)
        first = next((at for at, step in enumerate(path) if not self.has(step, shard)), len(path))
        if first == len(path) and all(self.has(step, shard) for step in self.build.steps_after(last)):
            return ()
        while first > 0 and not self.has(path[first - 1], shard, files=True):
            first -= 1
        return path[first:]
