"""How many runs become one experiment: our Hydra sweeper and launcher, and the display they share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hydra.core.config_store import ConfigNode


def register(overrides: Sequence[str] | None = None, sweep_files: Path = Path(__file__).parent) -> None:
    """Make the sweeper, the launcher and `+sweep=<name>` (a YAML file of this folder) known to Hydra.

    Hydra 1.3 takes plugin classes from a package named hydra_plugins alone; 1.4 takes them from anywhere.

    Args:
        overrides: what will be composed; None: anything. Hydra copies all that is stored whenever it lists a group, a
            hundred times for --help, so that files which no override names are stored empty and uncopied.
        sweep_files: their folder.
    """
    from hydra.core.config_store import ConfigStore
    from hydra.core.plugins import Plugins

    from sweeps.launcher import HarnessLauncher, HarnessLauncherConf
    from sweeps.optuna_sweeper import HarnessSweeper
    from sweeps.settings import SWEEPERS, SweeperConf

    guard = getattr(Plugins, "is_in_toplevel_plugins_module", None)
    if guard is not None:
        accepts = staticmethod(lambda name: name.startswith("sweeps.") or guard(name))
        Plugins.is_in_toplevel_plugins_module = accepts  # type: ignore[method-assign]
    Plugins.instance().register(HarnessSweeper)
    Plugins.instance().register(HarnessLauncher)
    store = ConfigStore.instance()
    own, *others = SWEEPERS
    store.store(group="hydra/sweeper", name=own, node=SweeperConf, provider="sweeps")
    for name in others:
        store.store(group="hydra/sweeper", name=name, node={"defaults": [own]}, provider="sweeps")
    store.store(group="hydra/launcher", name="harness", node=HarnessLauncherConf, provider="sweeps")
    for file in sorted(sweep_files.glob("*.yaml")):
        from omegaconf import OmegaConf

        named = overrides is None or any(file.stem in text for text in overrides)
        node: Any = OmegaConf.load(file) if named else {}
        if any(text.startswith("debug=") and text != "debug=null" for text in overrides or ()):
            node.pop("sweep_name", None)  # debug's own: its runs are none of the figure's
        store.store(group="sweep", name=file.stem, node=node, package="_global_", provider="sweeps")
        if not named:
            stored = store.repo["sweep"]
            stored[f"{file.stem}.yaml"] = _unopened(stored[f"{file.stem}.yaml"])


def _unopened(node: ConfigNode) -> ConfigNode:
    """A stored file that is listed alone: copies of it are itself."""
    from hydra.core.config_store import ConfigNode

    class Unopened(ConfigNode):
        def __deepcopy__(self, _: dict[int, object]) -> ConfigNode:
            return self

    return Unopened(node.name, node.node, node.group, node.package, node.provider)
