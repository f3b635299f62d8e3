"""The command line of a training: every field of Options is an option, upstream's flags as well."""

import dataclasses

from model.training.options import ALIASES, IGNORED, MODES, Options, contradictions


def read_arguments(parser, argv=None):
    """The words of a command line -> (Options, those flags of upstream's that have no effect).

    parser: an empty command_line.Parser; it ends the program at contradictions, in one message.
    """
    groups = {}
    for field in dataclasses.fields(Options):
        name = field.metadata["group"]
        if name not in groups:
            groups[name] = parser.add_argument_group(name)
        add_option(groups[name], field)
    add_upstream_flags(parser)
    given = vars(parser.parse_args(argv))

    chosen = {name: given.pop(f"also {name}") or [] for name in ("method", "dtype")}
    mode = given.pop("mode")
    sizes = given.pop("ignored --model-parallel-size")
    ignored = [flag for flag in IGNORED if given.pop(f"ignored {flag}", None)]
    if sizes:
        ignored.append("--model-parallel-size")
    problems = []
    if MODES.get(mode):
        chosen["method"].append(MODES[mode])
    if sizes and sizes != ["1"]:
        problems.append(f"--model-parallel-size {sizes[0]}: only 1 is supported")
    for name, values in chosen.items():
        problems += resolve(given, name, values)
    options = Options(**given)
    problems += contradictions(options)
    if problems:
        parser.error("; ".join(problems))
    return options, [flag for flag in ignored if flag != "--local_rank"]


def add_option(group, field):
    """One field of Options as an option of the command line."""
    settings = {k: v for k, v in field.metadata.items() if k != "group"}
    default = field.default
    if default is dataclasses.MISSING:
        default = field.default_factory()
    flag = "--" + field.name.replace("_", "-")
    if isinstance(default, bool):
        group.add_argument(flag, dest=field.name, action="store_true", help=settings["help"])
        return
    if field.name in ("method", "dtype"):  # given also by upstream's flags, see resolve
        settings["help"] += f" (default: {default})" if default else ""
        default = None
    elif default not in ("", None, []):
        shown = " ".join(default) if isinstance(default, list) else default
        settings["help"] += f" (default: {shown})"
    if isinstance(default, (str, int, float)):
        settings["type"] = type(default)
    group.add_argument(flag, dest=field.name, default=default, **settings)


def add_upstream_flags(parser):
    """The flags of upstream's launch script: other spellings, and those without effect."""
    group = parser.add_argument_group("flags of upstream's script")
    for flag, (name, value) in ALIASES.items():
        group.add_argument(
            flag,
            dest=f"also {name}",
            action="append_const",
            const=value,
            help=f"the same as --{name} {value}",
        )
    group.add_argument("--mode", choices=tuple(MODES), help="pretrain: the same as --method full")
    for flag, (values, why) in IGNORED.items():
        takes = {"nargs": 1, "metavar": "VALUE"} if values else {"action": "store_true"}
        group.add_argument(flag, dest=f"ignored {flag}", help=f"no effect: {why}", **takes)


def resolve(given, name, values):
    """Put the one choice that option and aliases agree on into `given`; else say what is wrong."""
    if given[name]:
        values = [given[name], *values]
    if set(values) == {"lora", "qlora"}:  # --use_lora --use_qlora
        values = ["qlora"]
    given[name] = values[0] if values else getattr(Options, name)
    if len(set(values)) > 1:
        return [f"--{name} {' and '.join(dict.fromkeys(values))} exclude each other: give one"]
    return []
