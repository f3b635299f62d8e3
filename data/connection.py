"""The way to an endpoint: what the environment says of it, and why it failed, in words."""

import html
import os
import re
import socket
import ssl
import urllib.request
from urllib.parse import urlsplit

from model.errors import UserError

PROXY_SCHEMES = ("http", "https", "socks5", "socks5h")
CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR")
# what the client puts into a header
HEADER_VARIABLES = ("OPENAI_ORG_ID", "OPENAI_PROJECT_ID")


def check_settings():
    """Variables of the environment that the client reads, before anything is asked.

    Raises UserError naming the one that is wrong.
    """
    for name in HEADER_VARIABLES:
        if not is_header(os.environ.get(name) or "x"):
            raise UserError(f"{name}: expected ASCII without spaces or line breaks")
    for kind, proxy in urllib.request.getproxies().items():
        if kind not in ("http", "https", "all"):
            continue
        problem = url_problem(proxy if "://" in proxy else f"http://{proxy}", PROXY_SCHEMES)
        if problem:
            raise UserError(f"{kind}_proxy {proxy!r} {problem}: correct or unset that variable")
    for name in CERTIFICATES:
        path = os.environ.get(name)
        if path and not os.path.exists(path):
            raise UserError(f"{name} {path} does not exist: correct or unset that variable")


def is_header(text):
    """Whether HTTP can send this text in a header."""
    return text.isascii() and text.isprintable() and " " not in text


def url_problem(url, schemes):
    """What is wrong with an address, None if nothing is."""
    if re.search(r"[\s\x00-\x1f\x7f]", url):
        return "contains spaces, line breaks or invisible characters"
    try:
        parts = urlsplit(url)
        _ = parts.port
        host = (parts.hostname or "").encode("idna")
    except ValueError as error:
        return f"is not an address ({error})"
    if parts.scheme not in schemes or not host:
        return f"does not start with {' or '.join(f'{scheme}://' for scheme in schemes)} and a host"
    return None


def reach(url, error):
    """Where a connection failed and why: "HOST[ through the proxy ADDRESS]: CAUSE"."""
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__
    host = urlsplit(url).netloc.rpartition("@")[2]
    proxy = _proxy_of(url)
    way = f" through the proxy {proxy}" if proxy else ""
    return f"{host}{way}: {_cause(error)}"


def _proxy_of(url):
    """The proxy that the environment names for an address, without its password, or None."""
    parts = urlsplit(url)
    proxies = urllib.request.getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if not proxy or urllib.request.proxy_bypass(parts.hostname or ""):
        return None
    return re.sub(r"//[^/@]*@", "//", proxy)


def _cause(cause):
    """The deepest cause of a connection that failed, in words."""
    if isinstance(cause, socket.gaierror):
        return f"the host is not known here ({cause.strerror or cause})"
    if isinstance(cause, ssl.SSLError):
        return f"TLS: {getattr(cause, 'verify_message', '') or cause.reason or cause}"
    if isinstance(cause, ConnectionRefusedError):
        return "refused, nothing listens there"
    return getattr(cause, "strerror", None) or str(cause) or type(cause).__name__


def without_markup(text):
    """The message of an error page as one text."""
    if not re.search(r"<(?:html|!doctype|body|head)", text, re.IGNORECASE):
        return text
    text = re.sub(r"<(style|script).*?</\1>|<[^>]*>", " ", text, flags=re.DOTALL | re.IGNORECASE)
    return html.unescape(" ".join(text.split()))
