"""The page put together, and shown behind the routes of an app."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from serving.map_tab import MapLayout, MapTab
from serving.maps import Maps
from serving.page.body_gate import BodyGate, refuse_fields
from serving.page.events import connect
from serving.page.fetching import switch_off_fetching
from serving.page.layout import LOGO, Layout
from serving.page.service import Service
from serving.space import Space

FOLDER = Path(__file__).parent
UPLOAD = "1gb"  # largest image or scene
# Seconds: how often, and how old, what no page shows is removed
LEFT_OVER = (3600, 24 * 3600)
# Fonts that show Chinese, by operating system
FONTS = [
    "system-ui",
    "PingFang SC",
    "Microsoft YaHei",
    "Noto Sans CJK SC",
    "WenQuanYi Micro Hei",
    "sans-serif",
]


def build(
    assistant: Any,
    english: bool | None = None,
    bands: Sequence[int] | None = None,
    at_a_time: int = 1,
    maps: Maps | None = None,
    **options: Any,
) -> gr.Blocks:
    """The page, not yet served. See Service for options.

    Its named endpoints are /image, /fetch_image and /answer. at_a_time: questions that the
    assistant takes at once, waiting ones included; maps: None: without maps of scenes.
    """
    switch_off_fetching()
    service = Service(assistant, english, bands, **options)
    with gr.Blocks(title="RemoteGLM", analytics_enabled=False, delete_cache=LEFT_OVER) as blocks:
        layout = Layout(service)
        if maps is None:
            layout.lay_out_body()
            connect(service, layout, at_a_time)
        else:
            with gr.Tabs(elem_id="tabs"):
                with layout.make(gr.Tab, label="chat"):
                    layout.lay_out_body()
                scenes = MapLayout(layout, maps.names())
            scenes.connect(MapTab(maps, service), *connect(service, layout, at_a_time))
    service.space.removers = removers(service, blocks, maps)
    return blocks.queue(max_size=2 * at_a_time + 16)


def removers(service: Service, blocks: gr.Blocks, maps: Maps | None) -> list:
    """What goes first where the disk is needed."""
    sessions = service.sessions
    unclaimed = partial(sessions.remove_unclaimed, blocks.upload_file_set)
    return [unclaimed, *([maps.remove_oldest] if maps else []), sessions.end_oldest]


def mount(
    app: Any,
    page: gr.Blocks,
    space: Space,
    host: str,
    port: int,
    root_path: str = "",
    auth: tuple[str, str] | None = None,
    english: bool | None = None,
) -> None:
    """Show the page behind the routes of a FastAPI app. auth: (user, password)."""
    refuse_fields()
    app.add_middleware(BodyGate, space=space, english=bool(english))
    scripts = [(FOLDER / name).read_text(encoding="utf-8") for name in ("calls.js", "page.js")]
    # Trap: mounted pages lack it, and then Gradio copies any file of the server that a request
    # names into its folder, instead of those only that were uploaded.
    page.has_launched = True
    gr.mount_gradio_app(
        app,
        page,
        path="/",
        server_name=host,
        server_port=port,
        root_path=root_path or None,
        auth=auth,
        max_file_size=UPLOAD,
        ssr_mode=False,
        show_error=True,
        run_history=False,
        footer_links=[],
        favicon_path=str(LOGO),
        theme=theme(),
        css=(FOLDER / "page.css").read_text(encoding="utf-8"),
        head="".join(f"<script>{script}</script>" for script in scripts),
    )


def theme() -> gr.themes.Base:
    """Teal and slate, dark enough for a contrast of 4.5."""
    return gr.themes.Default(
        primary_hue="teal", neutral_hue="slate", font=FONTS, font_mono=["monospace"]
    ).set(
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover_dark="*primary_800",
        button_cancel_background_fill="#b91c1c",
        button_cancel_background_fill_hover="#991b1b",
        button_cancel_background_fill_dark="#b91c1c",
        button_cancel_background_fill_hover_dark="#991b1b",
        input_placeholder_color="*neutral_500",
        input_placeholder_color_dark="*neutral_400",
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        block_label_text_color="*neutral_700",
        block_label_text_color_dark="*neutral_200",
        link_text_color="*primary_700",
    )
