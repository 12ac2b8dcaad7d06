"""Pictures of the example gallery: each example is run as it stands, what it did is kept and drawn.

    python benchmarks/gallery.py            # run the examples that are not kept yet, a few minutes in all, and draw
    python benchmarks/gallery.py --draw     # draw what was kept

What is kept are the files benchmarks/results/curves/gallery/NAME.csv. The picture of several machines is drawn from
the runs of one and two ranks on HalfCheetah that docs/scaling.md describes.
"""

import argparse
import csv
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks import learning

EXAMPLES = learning.ROOT / "examples"
KEPT = learning.RESULTS / "curves" / "gallery"
STEPS = 50_000
Rows = Iterable[Sequence[Any]]


def learn(model: Any, data: Any, *callbacks: Any) -> list[tuple[int, float]]:
    """Train a model and return the mean training return after each iteration."""
    import pytorch_lightning as pl

    points: list[tuple[int, float]] = []

    class History(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
            latest = trainer.callback_metrics.get("rollout/return_mean")
            if latest is not None:
                points.append((pl_module.env_steps, float(latest)))

    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = pl.Trainer(max_epochs=-1, accelerator="cpu", callbacks=[*callbacks, History()], **quiet)
    trainer.fit(model, data)
    return points


def cartpole(make: Any, **settings: Any) -> list[tuple[int, float]]:
    """Train on CartPole as the examples do and return the training returns."""
    import pytorch_lightning as pl

    from lightning_ppo import RolloutDataModule

    pl.seed_everything(1)
    data = RolloutDataModule("CartPole-v1", num_envs=8, num_steps=128, evaluation={"episodes": 0})
    return learn(make(data.observation_space, data.action_space, total_env_steps=STEPS, **settings), data)


def quickstart() -> Rows:
    """Return the training returns of the notebook."""
    from lightning_ppo import PPO

    return [("env_steps", "return"), *cartpole(PPO)]


def own_network() -> Rows:
    """Return the training returns of both networks."""
    import own_network

    from lightning_ppo import PPO

    encoder = cartpole(PPO, policy={"encoder": own_network.ENCODER, "hidden_sizes": [64]})
    network = cartpole(PPO, policy={"network": "own_network.SharedNetwork"})
    both = [(steps, value, other) for (steps, value), (_, other) in zip(encoder, network, strict=False)]
    return [("env_steps", "FourierEncoder", "SharedNetwork"), *both]


def own_loss() -> Rows:
    """Return the training returns with the loss of the example."""
    import own_loss

    return [("env_steps", "return"), *cartpole(own_loss.SimplePolicyOptimization)]


def own_environment() -> Rows:
    """Return where the cart is, step by step, in five episodes of a trained agent."""
    import own_environment
    import pytorch_lightning as pl

    from lightning_ppo import PPO, RolloutDataModule

    pl.seed_everything(1)
    data = RolloutDataModule("own_environment:Docking", num_envs=8, num_steps=128, evaluation={"episodes": 0})
    model = PPO(data.observation_space, data.action_space, total_env_steps=STEPS)
    learn(model, data)
    rows: list[Sequence[Any]] = [("episode", "step", "position")]
    env = own_environment.Docking()
    for episode in range(5):
        observation, _ = env.reset(seed=episode)
        ended, step = False, 0
        rows.append((episode, step, float(observation[0])))
        while not ended:
            action, _ = model.predict(observation)
            observation, _, terminated, truncated, _ = env.step(action)
            ended, step = terminated or truncated, step + 1
            rows.append((episode, step, float(observation[0])))
    return rows


def curriculum() -> Rows:
    """Return the length of the corridor after each update."""
    import curriculum
    import pytorch_lightning as pl

    from lightning_ppo import PPO, RolloutDataModule

    rows: list[Sequence[Any]] = [("env_steps", "length", "return")]
    callback = curriculum.Curriculum()

    class Lengths(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
            reached = trainer.callback_metrics.get("rollout/return_mean")
            if reached is not None:
                rows.append((pl_module.env_steps, callback.length, float(reached)))

    pl.seed_everything(1)
    data = RolloutDataModule("curriculum:Corridor", num_envs=8, num_steps=64, evaluation={"episodes": 0})
    model = PPO(data.observation_space, data.action_space, total_env_steps=30_000)
    learn(model, data, callback, Lengths())
    return rows


def deployment() -> Rows:
    """Return the returns of episodes that the exported file played."""
    import deployment

    with tempfile.TemporaryDirectory() as folder:
        return [("episode", "return"), *enumerate(deployment.main(Path(folder)))]


def search() -> Rows:
    """Return the trials of a short search on CartPole."""
    import search

    with tempfile.TemporaryDirectory() as folder:
        short = ["total_env_steps=20480", "update.epochs=4", "evaluation.final_episodes=20"]
        study = search.search(Path(folder), 8, ["configs/cartpole.yaml", *short])
    rows = [(trial.number, trial.params["learning_rate"], trial.value, trial.state.name) for trial in study.trials]
    return [("trial", "learning_rate", "return", "state"), *rows]


RUNS: dict[str, Callable[[], Rows]] = {
    function.__name__: function
    for function in (quickstart, own_environment, own_network, own_loss, curriculum, deployment, search)
}


def kept(name: str) -> list[dict[str, str]]:
    """Return the kept rows of an example."""
    return learning.read_rows(KEPT / f"{name}.csv")


def curves(name: str) -> dict[str, list[tuple[float, float]]]:
    """Return the columns of a kept file over its first one."""
    rows = kept(name)
    over, *columns = rows[0]
    return {column: [(float(row[over]), float(row[column])) for row in rows] for column in columns}


def draw(folder: Path | None = None) -> None:
    """Draw a picture of each example."""
    from benchmarks import drawing

    def picture(name: str, x: str, y: str, fill: Callable[[Any], None]) -> None:
        figure, ((axis,),) = drawing.panels(1, 1, 5.2, 2.8)
        fill(axis)
        axis.set(xlabel=x, ylabel=y)
        drawing.save(figure, f"example-{name}", folder or drawing.PICTURES)

    steps, colors = "environment steps", drawing.LIGHT
    for name in ("quickstart", "own_network", "own_loss"):
        picture(name, steps, "training return", lambda axis, name=name: drawing.lines(axis, curves(name)))
    picture("curriculum", steps, "length", lambda axis: drawing.lines(axis, {"length": curves("curriculum")["length"]}))

    def docking(axis: Any) -> None:
        axis.axhspan(-0.1, 0.1, color=colors["green"], alpha=0.25, linewidth=0)
        for episode in range(5):
            rows = [row for row in kept("own_environment") if row["episode"] == str(episode)]
            axis.plot([int(r["step"]) for r in rows], [float(r["position"]) for r in rows], color=colors["blue"])

    picture("own_environment", "step of an episode", "position; the dock is green", docking)

    def played(axis: Any) -> None:
        rows = kept("deployment")
        bars = axis.bar([f"{int(r['episode']) + 1}" for r in rows], [float(r["return"]) for r in rows])
        for bar in bars:
            bar.set_color(colors["blue"])
        axis.bar_label(bars, fmt="{:.0f}", padding=2)
        axis.margins(y=0.15)

    picture("deployment", "episode, played by the exported file", "return", played)

    def trials(axis: Any) -> None:
        for state, color in (("COMPLETE", "blue"), ("PRUNED", "other")):
            rows = [row for row in kept("search") if row["state"] == state and row["return"]]
            points = [[float(row[column]) for row in rows] for column in ("learning_rate", "return")]
            if rows:
                axis.scatter(*points, color=colors[color], label=f"{state.lower()} trial")
        axis.set_xscale("log")
        axis.minorticks_off()
        axis.set_xticks([1e-4, 3e-4, 1e-3, 3e-3], ["0.0001", "0.0003", "0.001", "0.003"])
        axis.legend(fontsize=10)

    picture("search", "learning rate", "return", trials)

    def ranks(axis: Any) -> None:
        for name, experiment, color in (
            ("1 rank, seeds 1 to 3", "before-annealing", "blue"),
            ("2 ranks, seeds 1 to 3", "two-ranks", "orange"),
        ):
            for seed in (1, 2, 3):
                rows = learning.read_rows(learning.RESULTS / "curves" / experiment / f"HalfCheetah-v5-{seed}.csv")
                points = [(float(row["env_steps"]), float(row["return"])) for row in rows]
                axis.plot(*zip(*points, strict=True), color=colors[color], label=name if seed == 1 else None)
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axis.legend(fontsize=10)

    picture("multi_node", steps, "training return", ranks)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draw", action="store_true", help="only draw")
    sys.path.insert(0, str(EXAMPLES))
    KEPT.mkdir(parents=True, exist_ok=True)
    for name, example in {} if parser.parse_args().draw else RUNS.items():
        path = KEPT / f"{name}.csv"
        if not path.exists():
            rows = [*example()]
            with open(path, "w", newline="") as file:
                csv.writer(file).writerows(rows)
            print(f"{name}: done", flush=True)
    draw()


if __name__ == "__main__":
    main()
