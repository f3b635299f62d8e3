"""The options of a map on a command line."""

from pathlib import Path

from mapping.options import STRETCHES, TASKS, Options, problem_of

# Fields of Options that are options of a map alone
ARGUMENTS = ("tile", "overlap", "tasks", "stretch", "min_confidence")


def add_scene_options(group):
    add = group.add_argument
    add(
        "--scene",
        help="map this large image: its tiles are asked about and become polygons of one scene "
        "(map.geojson, map.png, map.html, summary.txt in the folder --output); needs rasterio",
    )
    add(
        "--before",
        help="an earlier image of the same place, aligned by georeference: also says in which "
        "tiles of --scene the scene or the objects changed (changes.geojson)",
    )
    add("--tile", type=int, help=f"side of a tile in pixels ({Options.tile})")
    add(
        "--overlap",
        type=float,
        help="share of a tile that its neighbour covers as well, 0 to 0.9; where tiles overlap "
        f"they vote ({Options.overlap})",
    )
    add(
        "--tasks",
        nargs="+",
        choices=TASKS,
        help="what each tile is asked; the scene is read from its own answer or else from the "
        f"description ({' '.join(Options.tasks)})",
    )
    add(
        "--stretch",
        choices=STRETCHES,
        help="images of more than 8 bits are stretched alike in the whole scene, so that "
        f"neighbours look alike, or each tile by itself ({Options.stretch})",
    )
    add(
        "--min-confidence",
        type=float,
        help="tiles below it are left undecided: the probability of the scene's word against "
        f"those of all other scenes, 0 to 1 ({Options.min_confidence})",
    )


def check_scene_options(parser, args):
    """Fill in the defaults of a map's options; ends the script where they are contradictory, or
    stand there without a scene.
    """
    if not args.scene:
        for name in (*ARGUMENTS, "before"):
            if getattr(args, name) is not None:
                parser.error(f"--{name.replace('_', '-')} is for a map: name its --scene")
        return
    for name in ARGUMENTS:
        if getattr(args, name) is None:
            setattr(args, name, getattr(Options, name))
        value = getattr(args, name)
        problem = problem_of(name, value)
        if problem:
            parser.error(f"--{name.replace('_', '-')} {value}: {problem}")
    if not args.output:
        parser.error("--scene needs --output, the folder of the map")
    for name in ("image", "input", "json", "base"):
        if getattr(args, name):
            parser.error(f"--scene and --{name} exclude each other")


def scene_options(args) -> Options:
    """What was asked for, after check_scene_options."""
    return Options(
        scene=args.scene,
        output=Path(args.output),
        before=args.before,
        prompt=args.prompt,
        bands=args.bands,
        batch_size=args.batch_size,
        **{name: getattr(args, name) for name in ARGUMENTS},
    )
