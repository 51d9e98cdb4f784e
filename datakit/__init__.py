"""datakit turns public vision-language data into training batches.

The names that a recipe, a filter or a training loop needs stand here; docs/library.md shows each. They are loaded when
they are asked for, so that `import datakit` itself loads nothing.
"""

__version__ = "0.1.0"
__all__ = [
    "DatakitError",
    "Filter",
    "Message",
    "Mix",
    "Part",
    "Record",
    "Sample",
    "Stage",
    "Step",
    "Stream",
    "like",
]

TYPE_CHECKING = False  # type checkers take it for true; the one of typing would load typing
if TYPE_CHECKING:
    from datakit.engine.pipeline import like
    from datakit.engine.stage import Filter, Stage, Step
    from datakit.errors import DatakitError
    from datakit.records.record import Message, Part, Record
    from datakit.stream.mixfile import Mix
    from datakit.stream.reader import Sample, Stream
else:  # a checker that sees __getattr__ believes that any name is there
    _MODULES = {
        "DatakitError": "datakit.errors",
        "Filter": "datakit.engine.stage",
        "Message": "datakit.records.record",
        "Mix": "datakit.stream.mixfile",
        "Part": "datakit.records.record",
        "Record": "datakit.records.record",
        "Sample": "datakit.stream.reader",
        "Stage": "datakit.engine.stage",
        "Step": "datakit.engine.stage",
        "Stream": "datakit.stream.reader",
        "like": "datakit.engine.pipeline",
    }

    def __getattr__(name):
        """A public name, loaded. Raises AttributeError for any other."""
        if name not in _MODULES:
            from datakit.errors import nearest

            # name= keeps Python from adding a "Did you mean" of its own.
            raise AttributeError(f"datakit has no {name!r}. {nearest(name, __all__)}", name=name)
        from importlib import import_module

        value = getattr(import_module(_MODULES[name]), name)
        globals()[name] = value  # the next time it is there
        return value

    def __dir__():
        """The public names, whether they were loaded or not, and what else is there by now."""
        return sorted({*globals(), *__all__})
