"""Train the small π0 that ships, the RL token over a VLA, or, on recorded sessions, an actor or a hand-over.

examples:
  rlt demos record --task ethernet --episodes 400     # first: demonstrations into demos/ethernet
  rlt train vla --task ethernet                       # then the VLA (35 minutes on two cores)
  rlt train token --task ethernet --out models/mine   # the RL token over it; the same command goes on after Ctrl-C
  rlt train report --task ethernet --out models/mine  # what that token is worth, once more
  rlt train token --task cups --model models/pi0 --out models/cups --alpha 1 --dtype bfloat16   # and adapt the VLA
  rlt train token --task cups --model models/smolvla --out models/cups --width 128  # any back end, a smaller token
  accelerate launch --multi_gpu --num_processes 2 -m rlt_ros.cli.main train token --task cups --model models/pi0 \
    --out models/cups
  rlt train rl --session sessions/first --out sessions/offline                # the learner, offline, on recorded data
  rlt train rl --session sessions/b --prior sessions/a --out sessions/ab --set preset=rlpd batch_size=256
  rlt train handover --session sessions/first         # when to hand over, from the presses of a session
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from rlt_ros.cli.arguments import at_least

_VLA = """  rlt train vla --task ethernet                       # 35 minutes on two cores
  rlt train vla --task ethernet --minutes 10 6 8"""
_TOKEN = """  rlt train token --task ethernet --out models/mine   # the same command goes on after Ctrl-C
  rlt train token --task cups --model models/pi0 --out models/cups --alpha 1 --dtype bfloat16   # and adapt the VLA
  rlt train token --task cups --model models/smolvla --out models/cups --width 128  # any back end, a smaller token
  accelerate launch --multi_gpu --num_processes 2 -m rlt_ros.cli.main train token --task cups --model models/pi0 \\
    --out models/cups"""
_REPORT = "  rlt train report --task ethernet --out models/mine"
_RL = """  rlt train rl --session sessions/first --out sessions/offline
  rlt train rl --session sessions/b --prior sessions/a --out sessions/ab --set preset=rlpd batch_size=256"""
_HANDOVER = "  rlt train handover --session sessions/first"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    what = parser.add_subparsers(dest="what", metavar="what", required=True)

    def command(name: str, text: str, examples: str) -> argparse.ArgumentParser:
        return what.add_parser(
            name, help=text, description=text[0].upper() + text[1:] + ".", epilog="examples:\n" + examples,
            formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
        )  # fmt: skip

    vla = command("vla", "the small π0, by grounding and behaviour cloning", _VLA)
    token = command("token", "the RL token over a VLA of any back end; docs/training.md", _TOKEN)
    report = command("report", "what a token is worth, once more", _REPORT)
    rl = command("rl", "an actor, on recorded sessions, without the robot", _RL)
    handover = command("handover", "when to hand over, from the presses of a session", _HANDOVER)
    for made in (vla, token, report, rl):
        made.add_argument("--task", default="ethernet", help="task name or file (default: ethernet)")
    for made in (vla, token, report):
        made.add_argument("--demos", type=Path, metavar="DIR", help="demonstrations (default: demos/TASK)")
        made.add_argument("--out", type=Path, metavar="DIR", help="checkpoint folder (default: the one that ships)")

    add = vla.add_argument
    add("--scenes", type=int, default=20_000, metavar="N", help="pictures for the grounding stage (default: 20000)")
    add("--minutes", type=float, nargs=3, default=(12.0, 13.0, 10.0), metavar="M",
        help="of each stage; 0 goes on without it (default: 12 13 10)")

    for made in (token, report):
        made.add_argument("--model", type=Path, metavar="DIR",
                          help="VLA checkpoint (default: --out where it has one, else the task's)")  # fmt: skip
    add = token.add_argument
    add("--steps", type=int, default=2000, metavar="N", help="(default: 2000)")
    add("--minutes", type=float, default=0.0, metavar="M", help="how long, in place of --steps")
    add("--batch", type=int, default=64, metavar="N", help="samples a step, of all processes together (default: 64)")
    add("--accumulate", type=int, default=1, metavar="K", help="compute them in K pieces, for less memory")
    add("--lr", type=float, default=0.0, help="peak learning rate (default: 1e-3; tokens of 512 and wider: 2e-4)")
    add("--layers", type=int, default=2, metavar="N", help="of encoder and decoder (default: 2)")
    add("--width", type=int, default=0, metavar="D",
        help="numbers of the token, narrower than the embeddings for a wide VLA (default: as wide as they are)")
    add("--action-weight", type=float, default=1.0, metavar="W",
        help="of the action readout; 0 is the paper's loss (default: 1)")
    add("--alpha", type=float, default=0.0, help="weight of fine-tuning the VLA; 0: it is frozen (default: 0)")
    add("--tune", choices=("lora", "full"), default="lora", help="what of the VLA learns with --alpha (default: lora)")
    add("--rank", type=int, default=16, metavar="N", help="of the adapters of --tune lora (default: 16)")
    add("--vla-lr", type=float, default=5e-5, metavar="LR", help="peak learning rate of the VLA (default: 5e-5)")
    add("--cache", type=Path, metavar="DIR", help="where the embeddings are kept (default: DEMOS/embeddings)")
    add("--no-cache", action="store_true", help="keep them in memory")
    add("--restart", action="store_true", help="begin anew where an unfinished training could go on")
    add("--no-report", action="store_true", help="without token_report.md at the end")
    for made in (token, report):
        add = made.add_argument
        add("--dtype", choices=("float32", "bfloat16"), default="float32", help="arithmetic; weights stay float32")
        add("--device", choices=("cpu", "cuda"), help="(default: cuda where there is one)")
        add("--every", type=at_least(1), default=2, metavar="N", help="take each Nth picture (default: 2)")
        add("--resnet-steps", type=int, default=400, metavar="N",
            help="training of the report's ResNet (default: 400)")

    rl.add_argument("--session", type=Path, metavar="DIR", required=True, help="session that is learned from")
    add = rl.add_argument
    add("--out", type=Path, metavar="DIR", required=True, help="a new session folder, for the result")
    add("--prior", type=Path, nargs="+", default=[], metavar="DIR", help="earlier sessions, as prior data")
    add("--updates", type=at_least(1), metavar="N", help="gradient updates (default: utd times the transitions)")
    add("--set", nargs="+", default=[], metavar="NAME=VALUE",
        help="hyper-parameters, over the session's, such as beta=0.3 preset=rlpd hidden=[64,64]")
    for made in (vla, token, report, rl):
        made.add_argument("--threads", type=at_least(1), default=2, metavar="N",
                          help="CPU threads of a process (default: 2)")  # fmt: skip
        made.add_argument("--seed", type=int, default=0, metavar="S", help="of all that is drawn (default: 0)")
    handover.add_argument("--session", type=Path, metavar="DIR", required=True, help="session that is learned from")


def run(args: argparse.Namespace) -> int:
    if args.what == "handover":
        return train_handover(args)
    import torch

    torch.set_num_threads(args.threads)
    return {"vla": train_vla, "token": train_token, "report": report_token, "rl": train_rl}[args.what](args)


class Bars:
    """Progress bars with the time left; none of a process that is not to talk."""

    def __init__(self, shown: bool = True):
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[values]}"),
                   TimeRemainingColumn())  # fmt: skip
        self.bar, self.shown = Progress(*columns, disable=not shown), shown

    def __enter__(self) -> Bars:
        self.bar.start()
        return self

    def __exit__(self, *_) -> None:
        self.bar.stop()

    def stage(self, name: str):
        """A new bar: a function of (done, total, values)."""
        row = self.bar.add_task(name, total=1, values="")
        return lambda done, total, values: self.bar.update(
            row, completed=done, total=total, values=" ".join(f"{k} {v:.4g}" for k, v in values.items())
        )

    def say(self, text: str) -> None:
        """A line above the bars."""
        if self.shown:
            self.bar.console.print(text, markup=False, highlight=False, soft_wrap=True)


def train_vla(args: argparse.Namespace) -> int:
    """The small π0, by grounding and behaviour cloning."""
    from rlt_ros.cli.main import UsageError
    from rlt_ros.data import demos
    from rlt_ros.sim.scenes import grounding_scenes
    from rlt_ros.sim.task import load_task
    from rlt_ros.vla import train
    from rlt_ros.vla.frozen import CHECKPOINTS

    if args.scenes <= train.HELD_OUT:
        raise UsageError(f"--scenes {args.scenes}: expected more than the {train.HELD_OUT} that are held out")
    task = load_task(args.task)
    folder = args.demos or Path("demos") / task.name
    demos.paths(folder)  # complain at once, not after the scenes, which take minutes
    with Bars() as bars:
        scenes = grounding_scenes(folder / "scenes.npz", args.scenes, progress=bars.stage("scenes"))
        out = args.out or CHECKPOINTS / task.name
        minutes = tuple(args.minutes)
        train.train_vla(task, folder, out, scenes, minutes, seed=args.seed, progress=bars.stage("vla"))
    return 0


def token_parts(args: argparse.Namespace, model: Path, task, folder: Path, processes):
    """The VLA, on the processes' device, and the frames of its demonstrations."""
    from rlt_ros.training import embeddings, frames
    from rlt_ros.vla.backend import load_backend, name_of

    policy = load_backend(model)
    if args.what == "token" and args.alpha and not hasattr(policy, "flow_loss"):
        raise ValueError(f"--alpha {args.alpha:g}: the back end {name_of(model)!r} of {model} offers no flow-matching"
                         " loss to fine-tune it with; pi0 does. Fine-tune it with its own tools, then train its token"
                         " without --alpha")  # fmt: skip
    embeddings.move(policy, processes.device)
    return policy, frames.read(folder, list(task.cameras), list(policy.cameras), policy.image_size, policy.horizon,
                               policy.proprio_dim, policy.action_dim, args.every)  # fmt: skip


def token_paths(args: argparse.Namespace):
    """Task, and the folders of demonstrations, VLA and result. ValueError when there is no VLA."""
    from rlt_ros.sim.task import load_task
    from rlt_ros.vla.frozen import CHECKPOINTS

    task = load_task(args.task)
    out = args.out or CHECKPOINTS / task.name
    model = args.model or (out if (out / "rlt.json").is_file() else CHECKPOINTS / task.name)
    if not model.is_dir() and (CHECKPOINTS / str(model)).is_dir():
        model = CHECKPOINTS / str(model)
    if not (model / "rlt.json").is_file():
        raise ValueError(f"{model}: no VLA checkpoint (rlt.json); `rlt train vla` makes a small one, --model takes"
                         " another")  # fmt: skip
    return task, args.demos or Path("demos") / task.name, model, out


def processes_of(args: argparse.Namespace):
    import torch

    from rlt_ros.cli.arguments import require_device
    from rlt_ros.training.processes import Processes

    require_device(args.device or "cpu")
    return Processes.join(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))


def train_token(args: argparse.Namespace) -> int:
    """Algorithm 1, phase 1; then the report."""
    from rlt_ros.cli.main import UsageError
    from rlt_ros.training import embeddings, token

    task, folder, model, out = token_paths(args)
    if args.alpha and out.is_dir() and os.path.samefile(model, out):
        raise UsageError(f"--alpha changes the VLA, and --out {out} is where it comes from; take another --out")
    same = ("steps", "batch", "accumulate", "lr", "seed", "dtype", "layers", "width", "action_weight", "alpha", "tune",
            "rank", "vla_lr", "minutes")  # fmt: skip
    settings = token.Settings(**{name: getattr(args, name) for name in same})
    processes = processes_of(args)
    try:
        with Bars(processes.first) as bars:
            policy, frames = token_parts(args, model, task, folder, processes)
            rows, held = frames.split()
            settings.check(len(rows), processes.count)
            bars.say(f"{len(rows)} pictures of {frames.success.sum()} successful episodes, and {len(held)} held out;"
                     f" {processes.count} process{'es' if processes.count > 1 else ''} on {processes.device}")
            checkpoint, seen = embeddings.hash_checkpoint(model, policy), None
            if not args.alpha:
                cache = None if args.no_cache else args.cache or folder / "embeddings"
                seen = embeddings.embeddings(policy, frames, checkpoint, cache, processes, args.dtype, bars.say,
                                             bars.stage("embeddings"))
            if args.restart and processes.first:
                (out / token.STATE).unlink(missing_ok=True)
            processes.wait()
            training = token.TokenTraining(policy, frames, rows, settings, seen, processes)
            about = {"checkpoint": checkpoint, "demonstrations": frames.checksum}
            token.train(training, out, about, bars.say, bars.stage("token"))
            if processes.first:
                token.publish(training, model, out)
                bars.say(f"{out}: the token after {training.step} steps")
                if not args.no_report:
                    write_report(args, bars, processes, training.policy, training.token, True, frames, training.seen)
            processes.wait()
    finally:
        processes.leave()
    return 0


def report_token(args: argparse.Namespace) -> int:
    """The report on a token that there is."""
    from rlt_ros.core.rl_token import RLToken, TokenConfig
    from rlt_ros.training import embeddings, token

    task, folder, model, out = token_paths(args)
    processes = processes_of(args)
    with Bars() as bars:
        policy, frames = token_parts(args, model, task, folder, processes)
        readout, decoder = RLToken.load(out), False
        state = token.read_state(out / token.STATE)
        if state and token.published(state, out):
            readout, decoder = RLToken(TokenConfig(**state["config"])), True
            readout.load_state_dict(state["token"])

        def seen(rows):
            return embeddings.embed(policy, frames.images(rows), processes, args.dtype)

        write_report(args, bars, processes, policy, readout.to(processes.device).eval(), decoder, frames, seen)
    return 0


def write_report(args, bars, processes, policy, readout, decoder, frames, seen) -> None:
    from rlt_ros.training import report

    task, folder, _, out = token_paths(args)
    state = [(part.key, part.size) for part in task.state]
    subject = report.Subject(policy, readout, decoder, frames, seen, state, folder / "scenes.npz", args.dtype)
    found = report.make(subject, processes, args.resnet_steps, args.seed, bars.stage)
    report.write(found, out)
    bars.say(report.markdown(found))


def train_handover(args: argparse.Namespace) -> int:
    """As handover_node trains between episodes, with the session's settings: from the presses that it recorded."""
    import sys

    from rlt_ros.cli.main import UsageError
    from rlt_ros.core.handover import Settings, report_text, train
    from rlt_ros.core.parameters import read_parameters
    from rlt_ros.data.handover import read_approaches, save_classifier

    if not args.session.is_dir():
        raise UsageError(f"--session {args.session}: no such folder; give one that `rlt practice` made")
    path = args.session / "config.yaml"
    config = read_parameters(path) if path.is_file() else {}
    known = config.get("/**/handover_node", {}).get("ros__parameters", {})
    names = ("held_s", "within_s", "margin_s", "seed")
    settings = Settings(**{name: known[name] for name in names if name in known})
    approaches = read_approaches(args.session, lambda text: print(text, file=sys.stderr))
    classifier, report = train(approaches, settings)
    save_classifier(args.session, classifier, report)
    print(report_text(report, classifier.threshold), end="")
    return 0


def train_rl(args: argparse.Namespace) -> int:
    """The learner of the practice on recorded transitions, added in the journal's order and updated as they come."""
    import shutil

    import yaml
    from rich.console import Console

    from rlt_ros.cli.main import UsageError
    from rlt_ros.core.learner import Learner
    from rlt_ros.core.td3 import TD3Config
    from rlt_ros.nodes.learner_node import dims_of
    from rlt_ros.ros.stored import stored_transitions
    from rlt_ros.sim.task import load_task

    if (args.out / "checkpoints").exists():
        raise UsageError(f"--out {args.out}: there is a session already; take another folder")
    warn = Console(stderr=True).print
    path = args.session / "config.yaml"
    config = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}
    section = lambda name: config.get(name, {}).get("ros__parameters", {})  # noqa: E731
    settings = dict(section("/**/learner_node").get("td3", {})) | {"seed": args.seed}
    for item in args.set:
        name, found, value = item.partition("=")
        if not found:
            raise UsageError(f"--set {item}: expected NAME=VALUE, such as beta=0.3")
        settings[name] = yaml.safe_load(value)
    hyper = TD3Config.from_mapping(settings)
    task = load_task(section("/**").get("task", args.task))
    transitions = list(stored_transitions(args.session, warn))
    if not transitions:
        raise ValueError(f"session {args.session}: the journal has no transitions; practise first")
    learner = Learner(hyper, dims_of(transitions[0]), args.out, task.proprio_scale)
    for folder in args.prior:
        for transition in stored_transitions(folder, warn):
            learner.add_prior(transition, str(folder))
    total = args.updates or round(hyper.utd * len(transitions))
    shown = ("critic_loss", "q_mean", "td_error", "anchor", "updates_per_s")
    with Bars() as bars:
        show = bars.stage(f"{len(transitions)} transitions")
        # As in practice: the data grows, and each transition pays for its updates.
        for i, transition in enumerate(transitions):
            learner.add(transition)
            if len(learner.buffer) >= hyper.min_buffer or i == len(transitions) - 1:
                until = total if i == len(transitions) - 1 else (i + 1) * total // len(transitions)
                while learner.updates < until:
                    metrics = learner.step()
                    if learner.updates % 50 == 0:
                        show(learner.updates, total, {name: metrics[name] for name in shown})
        show(learner.updates, total, {})
    learner.version = 1
    learner.forget(0)  # practice that goes on in `out` numbers its own transitions from 0
    learner.forgive()  # and pays for these only: fewer or more updates than utd were asked for
    args.out.mkdir(parents=True, exist_ok=True)
    if path.is_file():
        shutil.copyfile(path, args.out / "config.yaml")
    print(
        f"{learner.updates} updates on {len(transitions)} transitions and {learner.buffer.kept} of prior data:"
        f" {learner.save()}"
    )
    print(f"evaluate it: rlt eval --task {task.name} --policy {args.out}")
    return 0
