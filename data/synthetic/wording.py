"""Words for what the tiny base sees: colours by name, counts, questions and their answers."""

from data.synthetic.captions import ZhCount
from data.synthetic.sheet import jitter

COLOURS = {
    "红色": (200, 54, 48),
    "橙色": (232, 140, 52),
    "黄色": (230, 206, 84),
    "绿色": (100, 164, 82),
    "深绿色": (42, 84, 48),
    "蓝色": (84, 142, 204),
    "深蓝色": (32, 56, 116),
    "紫色": (138, 82, 160),
    "白色": (238, 238, 236),
    "灰色": (142, 142, 144),
    "黑色": (34, 34, 38),
    "棕色": (128, 88, 58),
    "米色": (218, 200, 162),
}
# sum of the differences of red, green and blue from which on two colours look different
UNLIKE = 110

ASK = {
    "describe": (
        "描述这张图片。",
        "请描述这张图片。",
        "图片里有什么？",
        "这张图画了什么？",
        "说说你看到的内容。",
    ),
    "colour": ("背景是什么颜色？", "图片的底色是什么？", "背景颜色是哪一种？"),
    "texture": ("背景是什么纹理？", "背景的纹理是怎样的？", "底面是什么样的纹理？"),
    "count": ("图中有几个{}？", "有多少个{}？", "数一数{}有几个？"),
    "shape colour": ("{}是什么颜色？", "图中的{}是什么颜色的？"),
    "shape": ("图中是什么图形？", "图片里画的是哪种图形？"),
    "arrange": ("{}怎样排列？", "{}是如何摆放的？"),
    "side colour": ("{}是什么颜色？", "画面{}的颜色是什么？"),
    "side texture": ("{}是什么纹理？", "画面{}的纹理是怎样的？"),
    "edge": ("两部分的边界是直的吗？", "边界是什么形状？"),
    "way": ("带子的方向是什么？", "带子朝哪个方向？"),
    "bend": ("带子是直的还是弯的？", "带子弯不弯？"),
    "band colour": ("带子是什么颜色？", "穿过画面的带子是什么颜色？"),
    "bands": ("图中有几条带子？", "有多少条带子穿过画面？"),
    "is there": ("图中有{}吗？", "画面里有没有{}？"),
    "what": ("这是什么？", "图中的主要物体是什么？"),
    "how many": ("图中有几{}{}？", "有多少{}{}？"),
    "its colour": ("{}是什么颜色？", "图中{}的颜色是什么？"),
}


def zh(count, counter):
    """3, "个" -> 三个."""
    return format(ZhCount(count), counter)


def pick(rng, *avoid):
    """A colour by name and value, unlike each of the values to avoid."""
    while True:
        word = rng.choice(list(COLOURS))
        colour = COLOURS[word]
        if all(sum(abs(a - b) for a, b in zip(colour, other)) > UNLIKE for other in avoid):
            return word, jitter(rng, colour)


class Answers:
    """Rows about one image: each question has a short answer, and a sentence when asked for one."""

    def __init__(self, rng):
        self.rng = rng
        # [(question, answer), ...]
        self.rows = []

    def add(self, kind, short, full, *words):
        """kind: of ASK; words: filled into the question."""
        question = self.rng.choice(ASK[kind]).format(*words)
        if self.rng.random() < 0.3:
            self.rows.append((question + "请用一句话回答。", full))
        else:
            self.rows.append((question, short))

    def there(self, word, found):
        """A yes / no question about something."""
        answer = "有" if found else "没有"
        self.add("is there", f"{answer}。", f"图中{answer}{word}。", word)
