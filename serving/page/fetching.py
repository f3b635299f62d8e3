"""Gradio downloads whatever address stands in the place of a file; the page does that itself.

By model/images/fetch.py, which checks where an address leads and how much comes.
"""

from gradio import processing_utils
from gradio.exceptions import Error


def switch_off_fetching() -> None:
    """Trap: an instance of a component would not do, since updates make another one."""
    processing_utils.async_ssrf_protected_download = _refuse_later
    processing_utils.ssrf_protected_download = _refuse
    processing_utils.save_url_to_cache = _refuse


def _refuse(url: str, cache_dir: str) -> str:
    raise Error("a file was expected, not an address", print_exception=False)


async def _refuse_later(url: str, cache_dir: str) -> str:
    return _refuse(url, cache_dir)
