"""How many runs become one experiment: our Hydra sweeper and launcher, and the display they share."""

from __future__ import annotations

from pathlib import Path


def register(sweep_files: Path = Path(__file__).parent) -> None:
    """Make the sweeper, the launcher and `+sweep=<name>` (a YAML file of this folder) known to Hydra.

    Hydra 1.3 takes plugin classes from a package named hydra_plugins alone; 1.4 takes them from anywhere.
    """
    from hydra.core.config_store import ConfigStore
    from hydra.core.plugins import Plugins

    from sweeps.grid_sweeper import GridSweeper, GridSweeperConf
    from sweeps.launcher import HarnessLauncher, HarnessLauncherConf

    guard = getattr(Plugins, "is_in_toplevel_plugins_module", None)
    if guard is not None:
        accepts = staticmethod(lambda name: name.startswith("sweeps.") or guard(name))
        Plugins.is_in_toplevel_plugins_module = accepts  # type: ignore[method-assign]
    Plugins.instance().register(GridSweeper)
    Plugins.instance().register(HarnessLauncher)
    store = ConfigStore.instance()
    store.store(group="hydra/sweeper", name="grid", node=GridSweeperConf, provider="sweeps")
    store.store(group="hydra/launcher", name="harness", node=HarnessLauncherConf, provider="sweeps")
    for file in sorted(sweep_files.glob("*.yaml")):
        from omegaconf import OmegaConf

        store.store(group="sweep", name=file.stem, node=OmegaConf.load(file), package="_global_", provider="sweeps")
