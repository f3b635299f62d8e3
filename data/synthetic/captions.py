"""What a demo scene shows, in numbers and words, and the sentences that describe it.

The facts of an image are drawn first; captions state nothing but facts.
"""

import re
from typing import NamedTuple

# rotates the top to this side, in units of pi
SIDES = {"top": 0.0, "right": 0.5, "bottom": 1.0, "left": 1.5}
DIRECTIONS = {"horizontal": (0, 1), "vertical": (0.5, -0.5), "diagonal": (0.25, -0.25, 0.75, -0.75)}

COUNTS = "zero one two three four five six seven eight nine ten eleven twelve".split()
ZH_COUNTS = "零 一 两 三 四 五 六 七 八 九 十 十一 十二".split()
ZH = {
    "white": "白色",
    "red": "红色",
    "gray": "灰色",
    "blue": "蓝色",
    "green": "绿色",
    "brown": "棕色",
    "yellow": "黄色",
    "dark green": "深绿色",
    "yellow and green": "黄绿相间",
    "left": "左侧",
    "right": "右侧",
    "top": "上方",
    "bottom": "下方",
    "horizontal": "横向",
    "vertical": "竖向",
    "diagonal": "斜向",
    "green trees": "绿树",
    "green lawns": "草坪",
    "green grass": "绿草地",
    "bare ground": "裸地",
    "concrete ground": "水泥地",
    "buildings": "楼房",
    "a road": "道路",
    "a dirt road": "土路",
    "narrow ridges": "窄田埂",
    "a white plane": "停着一架白色飞机",
    "no plane": "没有飞机",
    "full of cars": "停满了汽车",
    "half full": "停了一半的车",
    "almost empty": "只停着几辆车",
    "in a row": "排成一行",
    "in a grid": "排成方阵",
    "scattered": "分散布置",
    "a narrow path": "有一条小路穿过",
    "a small clearing": "有一小块空地",
    "no gap": "没有空隙",
    "a bridge": "有一座桥",
    "no bridge": "没有桥",
}


class Scene(NamedTuple):
    """One scene.

    `english` has six sentences, of which an image gets five, which together tell all that its
    Chinese sentence tells: else one English text would have two translations. "{houses:house}"
    writes the count and the noun, "{houses:stands/stand}" only the form that agrees with the count.
    Of `chinese` a plain description leaves out what stands in brackets.
    """

    name: str
    zh: str
    # {fact: values it may have}; "colour other" are two facts with their joint values
    facts: dict
    english: list
    chinese: list


SCENES = {
    "farmland": Scene(
        name="farmland",
        zh="农田",
        facts={
            "fields": (3, 4, 5, 6),
            "border": ("a dirt road", "narrow ridges"),
            "colour other": (
                ("green", "yellow"),
                ("green", "brown"),
                ("yellow", "brown"),
                ("dark green", "yellow"),
            ),
        },
        english=[
            "{fields:piece} of farmland in {colour} and {other} lie side by side .",
            "The farmland is divided into {fields:field} by {border} .",
            "There are {fields:{colour} and {other} field} in the farmland .",
            "{colour} and {other} crops grow on this farmland .",
            "It is a piece of farmland with {border} between the fields .",
            "The farmland has neat furrows and {fields:rectangular field} .",
        ],
        chinese=[
            "这是一片农田，由{fields:块}{colour}和{other}的田地组成[，作物之间有{border}]。",
            "图中的农田以{border}为界分成{fields:块}，[作物的]颜色有{colour}和{other}。",
            "{fields:块}农田排列整齐，作物呈{colour}和{other}，田间有{border}。",
            "航拍图中是{colour}与{other}[的作物]相间的农田，一共有{fields:块}[，以{border}为界]。",
        ],
    ),
    "beach": Scene(
        name="beach",
        zh="海滩",
        facts={
            "sea": tuple(SIDES),
            "sand": ("yellow", "white"),
            "umbrellas": (2, 3, 4, 5, 6, 7, 8),
            "umbrella": ("red", "white", "blue"),
            "back": ("green trees", "a road", "green grass"),
        },
        english=[
            "The sea is on the {sea} of the {sand} beach .",
            "{umbrellas:{umbrella} umbrella} stand on the {sand} beach .",
            "White waves roll on to the beach with {umbrella} umbrellas and {back} behind it .",
            "There are {umbrellas:{umbrella} umbrella} on the beach beside the blue sea .",
            "It is a {sand} beach between the sea and {back} .",
            "Waves with white foam come from the {sea} to the beach .",
        ],
        chinese=[
            "{sand}的海滩{sea}是大海，[白浪涌来，]沙上立着{umbrellas:把}{umbrella}遮阳伞[，岸上是{back}]。",
            "这是一处海滩，海水在{sea}，[白浪拍岸，{sand}的沙上有{umbrellas:把}{umbrella}遮阳伞，]岸上紧邻{back}。",
            "白浪[从{sea}]涌向{sand}的海滩，岸边有{umbrellas:把}{umbrella}的遮阳伞[，岸上是{back}]。",
            "图像{sea}是蓝色的海水，与{sand}的海滩相接，[有{umbrellas:把}{umbrella}遮阳伞和浪花，]岸上是{back}。",
        ],
    ),
    "residential": Scene(
        name="residential area",
        zh="住宅区",
        facts={
            "houses": (4, 5, 6, 7, 8, 9, 10),
            "roof": ("red", "gray", "brown", "blue"),
            "around": ("green trees", "green lawns"),
        },
        english=[
            "{houses:house} with {roof} roofs stand in the residential area .",
            "A road runs through the residential area with {around} .",
            "There are {houses:house} on both sides of the road in this residential area .",
            "The houses of the residential area have {roof} roofs and {around} around them .",
            "It is a residential area with {houses:house} along a gray road .",
            "{around} surround the {roof} roofs of the residential area .",
        ],
        chinese=[
            "住宅区里有{houses:栋}{roof}屋顶的房屋，一条道路从中间穿过[，周围是{around}]。",
            "这是一个住宅区，{houses:栋}[{roof}屋顶的]房屋分列道路两旁，周围是{around}。",
            "图中的住宅区有{houses:栋}房子，屋顶是{roof}的，[中间是道路，]四周有{around}。",
            "{roof}屋顶的房屋沿道路排开，组成住宅区，共有{houses:栋}[，周围是{around}]。",
        ],
    ),
    "runway": Scene(
        name="runway",
        zh="跑道",
        facts={
            "direction": tuple(DIRECTIONS),
            "ground": ("green grass", "bare ground"),
            "plane": ("a white plane", "no plane"),
        },
        english=[
            "A {direction} runway lies on the {ground} .",
            "There is {plane} on the gray runway .",
            "The runway has white threshold bars and a dashed centre line .",
            "It is a straight runway with {ground} on both sides .",
            "White markings are painted on the {direction} runway .",
            "A taxiway runs beside the runway and {plane} is seen on it .",
        ],
        chinese=[
            "一条{direction}的灰色跑道铺在{ground}上，上面画着白色标线[，{plane}]。",
            "笔直的[{direction}]跑道两侧是{ground}，跑道上{plane}。",
            "图中是一条{direction}跑道，端部有白色标志线，[两侧是{ground}，]道面上{plane}。",
            "这是机场的跑道，呈{direction}延伸，旁边有滑行道和{ground}[，道面上{plane}]。",
        ],
    ),
    "parking": Scene(
        name="parking lot",
        zh="停车场",
        facts={
            "rows": (2, 3, 4),
            "fill": ("full of cars", "half full", "almost empty"),
            "beside": ("green trees", "green lawns"),
        },
        english=[
            "The parking lot is {fill} .",
            "There are {rows:row} of parking spaces in the parking lot .",
            "{beside} are around the parking lot .",
            "It is a gray parking lot with {rows:row} of white lines .",
            "The parking lot with {rows:row} is {fill} .",
            "Cars park neatly in the parking lot near {beside} .",
        ],
        chinese=[
            "停车场里有{rows:排}车位，{fill}，周围是{beside}。",
            "这是一个停车场，{rows:排}车位里{fill}[，旁边是{beside}]。",
            "灰色的停车场四周有{beside}，{rows:排}车位{fill}。",
            "图中的停车场画着白色车位线，共{rows:排}，{fill}[，周围是{beside}]。",
        ],
    ),
    "tanks": Scene(
        name="storage tank",
        zh="储罐",
        facts={
            "tanks layout": (
                (2, "in a row"),
                (3, "in a row"),
                (4, "in a row"),
                (4, "in a grid"),
                (6, "in a grid"),
                (9, "in a grid"),
                (3, "scattered"),
                (5, "scattered"),
                (7, "scattered"),
            ),
            "colour": ("white", "gray", "brown"),
            "ground": ("green grass", "bare ground", "concrete ground"),
        },
        english=[
            "{tanks:{colour} storage tank} stand on the {ground} .",
            "{tanks:round storage tank} lie {layout} .",
            "The {colour} storage tanks are {layout} .",
            "It is a group of {colour} storage tanks on the {ground} .",
            "{tanks:storage tank} cast dark shadows on the {ground} .",
            "Some round {colour} storage tanks can be seen on the {ground} .",
        ],
        chinese=[
            "{tanks:个}{colour}的圆形储罐{layout}，立在{ground}上。",
            "图中有{tanks:个}储罐，颜色为{colour}，{layout}[，建在{ground}上]。",
            "{ground}上建有{tanks:个}{colour}储罐，它们{layout}，罐旁有阴影。",
            "这是一组{colour}的储罐，共{tanks:个}，[{layout}，]位于{ground}上。",
        ],
    ),
    "tennis": Scene(
        name="tennis court",
        zh="网球场",
        facts={
            "courts": (1, 2, 3, 4),
            "colour around": (
                ("green", "red"),
                ("blue", "green"),
                ("red", "green"),
                ("blue", "gray"),
                ("green", "gray"),
            ),
            "beside": ("green trees", "green lawns"),
        },
        english=[
            "{courts:{colour} tennis court} with white lines {courts:is/are} in the picture .",
            "There {courts:is/are} {courts:tennis court} with {around} ground around .",
            "{beside} are near the {colour} tennis {courts:court/courts} .",
            "The tennis {courts:court is/courts are} {colour} and the ground around is {around} .",
            "{courts:tennis court} {courts:is/are} surrounded by {beside} .",
            "White lines mark the {colour} tennis {courts:court/courts} .",
        ],
        chinese=[
            "图中有{courts:个}{colour}的网球场，外围地面是{around}的[，旁边是{beside}]。",
            "{courts:个}网球场画着白色边线，场地呈{colour}，[场外呈{around}，]四周是{beside}。",
            "这里有{courts:个}网球场，场内{colour}，场外{around}，旁边有{beside}。",
            "{beside}环绕着{courts:个}{colour}网球场，[外围地面是{around}的，]场中拉着球网。",
        ],
    ),
    "baseball": Scene(
        name="baseball diamond",
        zh="棒球场",
        facts={
            "diamonds": (1, 2),
            "clay": ("brown", "red"),
            "beside": ("green trees", "green lawns"),
        },
        english=[
            "{diamonds:baseball diamond} with {clay} clay {diamonds:is/are} in the picture .",
            "The baseball {diamonds:diamond has/diamonds have} the shape of a fan .",
            "{beside} surround the baseball {diamonds:diamond/diamonds} .",
            "There {diamonds:is/are} {diamonds:baseball diamond} on the green grass .",
            "The infield of the baseball {diamonds:diamond/diamonds} is {clay} and the outfield is "
            "green .",
            "It is a view of {diamonds:baseball diamond} near {beside} .",
        ],
        chinese=[
            "图中有{diamonds:个}扇形的棒球场，内场是{clay}的土地[，旁边有{beside}]。",
            "{diamonds:个}棒球场位于{beside}之间，[内场是{clay}的土地，]外场是绿色草地。",
            "{beside}旁边有{diamonds:个}棒球场，{clay}的内场围着菱形草地。",
            "这是{diamonds:个}棒球场，{clay}土地和绿色草地组成扇形[，四周有{beside}]。",
        ],
    ),
    "forest": Scene(
        name="forest",
        zh="森林",
        facts={
            "colour": ("green", "dark green", "yellow and green"),
            "opening": ("a narrow path", "a small clearing", "no gap"),
        },
        english=[
            "It is a dense {colour} forest .",
            "There is {opening} in the forest .",
            "Many {colour} trees form the forest .",
            "The trees of the {colour} forest stand close to each other .",
            "The forest with {colour} trees has {opening} .",
            "A {colour} forest covers the ground with {opening} .",
        ],
        chinese=[
            "这是一片{colour}的茂密森林，[树木相连，]林中{opening}。",
            "图中的森林长满{colour}的树木，树冠相连，其间{opening}。",
            "{colour}的树冠密密地铺开，形成一片森林，里面{opening}。",
            "从空中看，森林呈{colour}，树木十分茂密，{opening}。",
        ],
    ),
    "river": Scene(
        name="river",
        zh="河流",
        facts={
            "direction": tuple(DIRECTIONS),
            "water": ("green", "blue", "brown"),
            "bank": ("green trees", "green grass", "bare ground"),
            "bridge": ("a bridge", "no bridge"),
        },
        english=[
            "A {water} river flows through {bank} .",
            "The river runs in a {direction} direction .",
            "There is {bridge} over the {water} river .",
            "{bank} can be seen on both sides of the river .",
            "It is a curved river with {water} water .",
            "The {direction} river has {bridge} and {bank} on its banks .",
        ],
        chinese=[
            "一条{water}的河流{direction}流过，两岸是{bank}[，河上{bridge}]。",
            "弯曲的河流呈{water}，[{direction}流过，]两岸是{bank}，河上{bridge}。",
            "图中的河流{direction}穿过画面，河水是{water}的，[两岸是{bank}，]水面上{bridge}。",
            "这是一条{direction}的河流，河水{water}，岸边有{bank}[，河上{bridge}]。",
        ],
    ),
    "intersection": Scene(
        name="intersection",
        zh="十字路口",
        facts={
            "cars": (2, 3, 4, 5, 6, 7, 8),
            "corner": ("buildings", "green trees", "green lawns"),
        },
        english=[
            "Two roads cross at the intersection .",
            "There are {cars:car} at the intersection .",
            "{corner} can be seen at the corners of the intersection .",
            "{cars:car} drive on the roads near the intersection .",
            "The intersection has zebra crossings and {corner} around it .",
            "It is an intersection of two roads with {cars:car} .",
        ],
        chinese=[
            "两条道路交会成十字路口，路上有{cars:辆}汽车[和斑马线，四周是{corner}]。",
            "十字路口的四角是{corner}，路面上有{cars:辆}车和斑马线。",
            "图中是一个十字路口，{cars:辆}汽车行驶在[有斑马线的]路上，周围是{corner}。",
            "这个十字路口[的道路]画着斑马线，四周有{corner}，共有{cars:辆}车。",
        ],
    ),
    "harbour": Scene(
        name="harbour",
        zh="港口",
        facts={
            "land": tuple(SIDES),
            "water": ("blue", "green", "gray"),
            "piers boats": tuple(
                (p, b) for p in (1, 2, 3) for b in range(3, 11) if 2 * p <= b <= 2 + 4 * p
            ),
        },
        english=[
            "{boats:white boat} are moored in the harbour .",
            "There {piers:is/are} {piers:pier} in the harbour with {water} water .",
            "The land is on the {land} of the harbour .",
            "{boats:boat} lie beside {piers:pier} of the harbour .",
            "It is a harbour with {water} water and {boats:boat} .",
            "The {piers:pier reaches/piers reach} from the {land} into the {water} harbour .",
        ],
        chinese=[
            "港口里有{piers:座}码头，停着{boats:艘}白色的船，水面呈{water}[，陆地在{land}]。",
            "这是一个港口，陆地在{land}，{boats:艘}船停靠在[{piers:座}]码头旁[，水面呈{water}]。",
            "{boats:艘}白船停在港口的{piers:座}码头边，水是{water}的[，陆地在{land}]。",
            "图中港口的{land}是陆地，{piers:座}码头伸入{water}的水中[，旁边有{boats:艘}船]。",
        ],
    ),
}


class Count(int):
    """A count that an English template writes in words.

    `{houses:house}` -> "four houses", `{houses:stands/stand}` -> "stand"
    """

    def __format__(self, spec):
        if "/" in spec:
            one, many = spec.split("/")
            return one if self == 1 else many
        plural = "" if self == 1 else "s"
        return f"{COUNTS[self]} {spec}{plural}"


class ZhCount(int):
    """A count that a Chinese template writes in words, before a counter: `{houses:栋}` -> 四栋."""

    def __format__(self, spec):
        return ZH_COUNTS[self] + spec


def joint_facts(names, value):
    """("colour other", ("green", "brown")) -> {"colour": "green", "other": "brown"}."""
    values = value if " " in names else (value,)
    return dict(zip(names.split(), values))


def facts(scene, rng):
    """What an image of the scene will show, by name, and the `style` of its sentences."""
    found = {"scene": scene, "style": rng.randrange(6)}
    for names, options in SCENES[scene].facts.items():
        found.update(joint_facts(names, rng.choice(options)))
    return found


def describe_en(f):
    """Five English sentences, tokens apart from the final period as in published caption sets."""
    words = {}
    for key, value in f.items():
        words[key] = Count(value) if isinstance(value, int) else value
    templates = SCENES[f["scene"]].english
    sentences = []
    for k in range(5):
        text = templates[(f["style"] + k) % len(templates)].format(**words)
        sentences.append(text[0].upper() + text[1:])
    return sentences


def describe_zh(f, plain=False):
    """One Chinese description; it tells every fact, a plain one only some."""
    words = {}
    for key, value in f.items():
        words[key] = ZhCount(value) if isinstance(value, int) else ZH.get(value, value)
    templates = SCENES[f["scene"]].chinese
    template = templates[f["style"] % len(templates)]
    template = re.sub(r"\[.*?\]", "", template) if plain else re.sub(r"[\[\]]", "", template)
    return template.format(**words)
