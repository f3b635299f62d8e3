"""Replies of bounded size: what a server sends without an end must fill no memory."""

from importlib import import_module

from openai import OpenAIError

# bytes of a reply: some hundred thousand tokens, each an event of its own
MOST = 2**25
# of one that is compressed, which may unpack to a thousand times as much
MOST_PACKED = 2**18


class TooLong(OpenAIError):
    """The client hands it on, without another try."""


def bound(response):
    """A hook of the client: reading on beyond the limit will raise TooLong."""
    is_packed = response.headers.get("Content-Encoding", "identity") != "identity"
    library = import_module(type(response).__module__.partition(".")[0])  # httpx or a successor
    most = MOST_PACKED if is_packed else MOST
    response.stream = _bounded(library)(response.stream, most, is_packed)


async def bound_async(response):
    bound(response)


def _bounded(library):
    class Bounded(library.SyncByteStream, library.AsyncByteStream):
        def __init__(self, stream, most, is_packed):
            self.stream, self.most, self.is_packed = stream, most, is_packed
            self.length = 0

        def _counted(self, chunk):
            self.length += len(chunk)
            if self.length > self.most:
                how = "compressed " if self.is_packed else ""
                raise TooLong(f"a {how}reply of more than {self.most // 1000} kB, and no answer")
            return chunk

        def __iter__(self):
            return map(self._counted, self.stream)

        async def __aiter__(self):
            async for chunk in self.stream:
                yield self._counted(chunk)

        def close(self):
            self.stream.close()

        async def aclose(self):
            await self.stream.aclose()

    return Bounded
