"""What a checkpoint may name: what its user has signed or trusts, and of the rest only what is known to be harmless.

Settings name environments, wrappers, networks, callbacks and loggers, and bring their arguments. Those of a file that
comes from elsewhere are looked at as text, before anything they name is imported; only names on the list below go on.
Whoever then uses a name makes sure of the kind of class it stands for before calling it.
"""

import importlib.util
import json
import re
import site
import sys
import sysconfig
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lightning_ppo.settings.loading import to_container
from lightning_ppo.settings.moved import with_new_paths
from lightning_ppo.support.errors import CheckpointError, EnvironmentFault
from lightning_ppo.support.signature import is_own, sign

LISTED: dict[str, tuple[str, ...]] = {
    "objective": ("lightning_ppo.update.policy_objectives.*",),
    "loss term": ("lightning_ppo.update.loss_terms.*",),
    "distribution": (
        *("lightning_ppo.policy.distributions.*", "lightning_ppo.policy.distributions.continuous.*"),
        *("lightning_ppo.policy.distributions.bounded.*", "lightning_ppo.policy.distributions.discrete.*"),
    ),
    "optimizer": (
        *("torch.optim.*", "torch.optim.adam.*", "torch.optim.adamw.*", "torch.optim.radam.*", "torch.optim.nadam.*"),
        *("torch.optim.sgd.*", "torch.optim.rmsprop.*", "torch.optim.adagrad.*"),
    ),
    "scheduler": ("torch.optim.lr_scheduler.*",),
    "wrapper": ("gymnasium.wrappers.*", "minigrid.wrappers.*", "lightning_ppo.envs.atari.FireReset"),
    "callback": (
        *("pytorch_lightning.callbacks.EarlyStopping", "pytorch_lightning.callbacks.LearningRateMonitor"),
        *("pytorch_lightning.callbacks.DeviceStatsMonitor", "pytorch_lightning.callbacks.ModelSummary"),
        *("pytorch_lightning.callbacks.RichProgressBar", "pytorch_lightning.callbacks.TQDMProgressBar"),
        *("lightning_ppo.run.recording.RecordVideo", "lightning_ppo.run.curriculum.SetProgress"),
    ),
    "logger": ("csv", "tensorboard", "wandb", "mlflow"),
}
"""By kind, the names that any file may use; `.*` stands for the classes of that module, less those in UNLISTED."""

UNLISTED = tuple(
    f"gymnasium.wrappers.{name}"
    for name in ("RecordVideo", "ArrayConversion", "JaxToNumpy", "JaxToTorch", "NumpyToTorch")
)
"""The first writes files where its arguments say, the others are about importing further packages."""

ENVIRONMENTS = ("gymnasium.envs", "minigrid", "ale_py", "lightning_ppo.envs.torch_envs")
"""Modules, and what is below them, whose environments any file may use by id or import path."""

TEXTS: dict[str, tuple[str, ...]] = {
    "callback": ("monitor", "mode", "logging_interval"),
    "logger": (),
    "pool argument": (),
    "trainer": ("accelerator", "devices", "strategy", "precision", "max_time", "gradient_clip_algorithm"),
}
"""By kind, the arguments that may be text; of other kinds all may, if they are words. EnvPool's may name programs."""

SHARED = ("lightning_ppo", "pytorch_lightning", "lightning_fabric", "gymnasium", "torch")
"""Packages that hold too much to be trusted as a whole."""

MODULE = ("objective", "policy", "loss_terms", "optimizer")
SECTIONS: dict[str, tuple[str, ...]] = {
    "hyper_parameters": MODULE,
    "hparams": MODULE,
    "module_arguments": MODULE,
    "datamodule_hyper_parameters": ("env", "env_kwargs", "backend"),
    "config": (*MODULE, "env", "callbacks", "loggers", "trainer"),
}
"""Parts of a checkpoint, and the settings in each that name code; Lightning also reads two under their former names."""

WORDS = re.compile(r"[\w +-]*")
"""Text that can be neither a path nor the name of something to import."""


class Reference(NamedTuple):
    """One place where settings name code."""

    key: str
    """The setting, such as `env.id`."""
    kind: str
    """The kind that is required there."""
    name: str
    """The name."""
    arguments: Any
    """Its arguments."""


def check_names(
    content: Mapping[str, Any], source: object, trust: Sequence[str] = (), given: Collection[str] = ()
) -> dict[str, Any]:
    """Refuse a checkpoint that names anything which a file must not decide; nothing of it has run by then.

    Args:
        content: The checkpoint.
        source: Where it is from, for error messages.
        trust: Packages, classes, environment ids or settings that the user trusts.
        given: Settings, or sections, that the user has given himself, which replace those of the file.

    Returns:
        The checkpoint, in whose settings classes of this package have the import paths of today.

    Raises:
        CheckpointError: Naming the first setting that needs trust, and how to give it.
    """
    trust = [trust] if isinstance(trust, str) else trust
    try:
        own = is_own(_message(list(_references(content))), content.get("ppo", {}).get("signature"))
        content = {**content, **{name: with_new_paths(content[name]) for name in SECTIONS if name in content}}
        for reference in () if own else _references(content):
            if _is_below(reference.key, given) or f"{reference.key}.class_path" in given:
                continue
            reason = _objection(reference, trust)
            if reason is not None:
                # a terminal obeys control characters
                shown = "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in reason)
                raise CheckpointError(f"{source}: {shown}")
        return content
    except (AttributeError, TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{source}: its settings are none of lightning_ppo ({type(error).__name__})") from None


def signature_of(content: Mapping[str, Any]) -> str:
    """Return the user's signature of what a checkpoint names, empty where any file may name it."""
    try:
        references = list(_references(content))
    except (AttributeError, TypeError, ValueError):  # a derived class has arguments of its own under our names
        return ""
    if all(_objection(reference, ()) is None for reference in references):
        return ""
    return sign(_message(references))


def _message(references: Sequence[Reference]) -> bytes:
    return json.dumps(references, sort_keys=True, default=str).encode()


def _references(content: Mapping[str, Any]) -> Iterator[Reference]:
    """Yield all that a checkpoint names: in the arguments of module and data module, in the settings, for Lightning."""
    for section, names in SECTIONS.items():
        settings = to_container(content.get(section) or {})
        yield from named_in({name: settings[name] for name in names if settings.get(name) is not None})
        if "_instantiator" in settings:
            yield Reference("_instantiator", "function", str(settings["_instantiator"]), settings)
    env = to_container(content.get("datamodule_hyper_parameters") or {}).get("env") or {}
    for state in content.values():
        changes = state.get("changes", {}) if isinstance(state, Mapping) and "ranks" in state else {}
        for change in changes.get("training", ()):
            if change.get("how") == "call":
                key, arguments = f"datamodule.call({change.get('name')!r})", [change.get("args"), change.get("kwargs")]
                yield Reference(key, "call", str(env.get("id") or "environments"), arguments)
    for key in ("hparams_name", "datamodule_hparams_name", "hparams_type", "datamodule_hparams_type"):
        if content.get(key) not in (None, "", "kwargs"):
            yield Reference(key, "name", str(content[key]), None)


def named_in(settings: Mapping[str, Any]) -> Iterator[Reference]:
    """Yield all that settings name, given as plain data in their sections."""
    yield from _classes("objective", "objective", [settings.get("objective")])
    for name in ("network", "encoder", "core"):
        yield from _classes(f"policy.{name}", "network", [settings.get("policy", {}).get(name)])
    yield from _classes("policy.distribution", "distribution", [settings.get("policy", {}).get("distribution")])
    yield from _classes("optimizer", "optimizer", [settings.get("optimizer", {})])
    yield from _classes("optimizer.scheduler", "scheduler", [settings.get("optimizer", {}).get("scheduler")])
    yield from _classes("loss_terms", "loss term", settings.get("loss_terms", ()))
    env = settings.get("env", {})
    env = {"id": env} if isinstance(env, str) else env
    if env.get("id"):
        name, pooled = str(env["id"]), "envpool" in (env.get("backend"), settings.get("backend"))
        yield Reference("env.id", "pool" if pooled else "environment", name, {})
        for key, value in ((env.get("kwargs") or {}) | settings.get("env_kwargs", {})).items():
            yield Reference(f"env.kwargs.{key}", "pool argument" if pooled else "argument", name, {key: value})
        if str(env.get("action_mask")).startswith("method:"):
            yield Reference("env.action_mask", "argument", name, env["action_mask"])
    yield from _classes("env.wrappers", "wrapper", env.get("wrappers") or ())
    yield from _classes("callbacks", "callback", settings.get("callbacks", ()))
    yield from _classes("loggers", "logger", settings.get("loggers", ()))
    for name, value in settings.get("trainer", {}).items():
        yield Reference(f"trainer.{name}", "trainer", f"trainer.{name}", {name: value})


def _classes(key: str, kind: str, entries: Iterable[Any]) -> Iterator[Reference]:
    for entry in entries:
        settings = entry if isinstance(entry, Mapping) else {"class_path": entry}
        path, arguments = settings.get("class_path"), settings.get("init_args") or {}
        # only where a setting stands for a single class does a word name nothing to import
        if kind in ("wrapper", "loss term", "callback", "logger") or arguments or not _is_built_in(path):
            yield Reference(key, kind, str(path), arguments)


def _is_built_in(name: Any) -> bool:
    """Return whether a setting is left out, or a word such as `clip` or `lstm`, which names nothing to import."""
    return name is None or (isinstance(name, str) and "." not in name)


def _objection(reference: Reference, trust: Sequence[str]) -> str | None:
    """Return why a file from elsewhere must not name this, or None if it may."""
    key, kind, name, arguments = reference
    if name in trust:
        return None
    if kind.endswith("argument") and _is_below(name, trust):
        return None
    package = "ale_py" if name.startswith("ALE/") else re.split(r"[.:]", name)[0]
    if not _is_listed(kind, name):
        if kind in ("function", "name") or not _is_below(name, trust):
            shared = kind in ("function", "name") or package in SHARED or package in sys.stdlib_module_names
            return f"{key} names {name}, {_remedy(name if shared else package)}"
    elif not _is_harmless(arguments, TEXTS.get(kind)):
        return f"{key} names {name} with {str(arguments)[:80]}, {_remedy(name)}"
    else:
        for needed in (package, *(["envpool"] if kind == "pool" else [])):
            if not _is_installed(needed):
                return f"{key} names {name}, but {needed} is none of the installed packages, {_remedy(name)}"
    return _environment_objection(name, trust) if kind in ("environment", "pool") else None


def _remedy(name: str) -> str:
    return f"which a file that is not your own may not; if you know what it does, add --trust {name}"


def _is_below(name: str, packages: Collection[str]) -> bool:
    return any(name == package or name.startswith((f"{package}.", f"{package}:")) for package in packages)


def _is_listed(kind: str, name: str) -> bool:
    if kind in ("argument", "pool argument", "trainer"):
        return True
    if kind in ("environment", "pool"):
        module, separator, _ = name.partition(":")
        return not separator or module == "gymnasium" or _is_below(module, ENVIRONMENTS)
    module, listed = name.rpartition(".")[0], LISTED.get(kind, ())
    return (name in listed or f"{module}.*" in listed) and name not in UNLISTED


def _environment_objection(name: str, trust: Sequence[str]) -> str | None:
    """Look an environment up without making it: a class, or what a known package has registered."""
    from gymnasium import Env
    from gymnasium.vector import VectorEnv

    from lightning_ppo.support.env_specs import find_spec

    try:
        spec = find_spec(name)
    except EnvironmentFault:  # building it raises the same error
        return None
    module, _, attribute = name.partition(":")
    if attribute and hasattr(sys.modules[module], attribute):
        target = getattr(sys.modules[module], attribute)
        if isinstance(target, type) and issubclass(target, Env | VectorEnv):
            return None
        return f"env.id names {name}, no class of environments, {_remedy(name)}"
    for point in (spec.entry_point, spec.vector_entry_point):
        home = point.partition(":")[0] if isinstance(point, str) else getattr(point, "__module__", None)
        if home is not None and not _is_below(home, (*ENVIRONMENTS, *trust)):
            return f"env.id names {name}, made by {home}, {_remedy(name)}"
    return None


def _is_harmless(value: Any, texts: Collection[str] | None) -> bool:
    """Return whether arguments are numbers and words; `texts` are the names of those that may be any text but code."""
    if value is None or isinstance(value, bool | int | float):
        return True
    if isinstance(value, str):
        return texts is None and WORDS.fullmatch(value) is not None
    if isinstance(value, Mapping):
        return all(
            isinstance(key, str)
            and ((texts is not None and key in texts and isinstance(child, str)) or _is_harmless(child, texts))
            for key, child in value.items()
        )
    return isinstance(value, list | tuple) and all(_is_harmless(child, texts) for child in value)


def _is_installed(package: str) -> bool:
    """Return whether importing a package runs nothing but what is installed, if it runs anything at all."""
    if package in sys.modules or not package.isidentifier():
        return True
    spec = importlib.util.find_spec(package)
    if spec is None:
        return True
    homes = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    homes += [site.getusersitepackages(), *site.getsitepackages()]
    places = [spec.origin] if spec.origin else list(spec.submodule_search_locations or [])
    return all(any(Path(place).is_relative_to(home) for home in homes) for place in places)
