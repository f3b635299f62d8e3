"""Why an image cannot be read: the kind, for those who count, and one line for the user."""

from model.errors import UserError

# no image, or of a kind that nothing here decodes
UNREADABLE = "unreadable"
# an image, but not whole
TRUNCATED = "truncated"
TOO_LARGE = "too large"
NEEDS_RASTERIO = "needs rasterio"
# at an address that strangers may not have read
PRIVATE = "private"


class ImageError(UserError):
    """One image cannot be read; `kind`: one of the above."""

    def __init__(self, message: str, kind: str = UNREADABLE):
        super().__init__(message)
        self.kind = kind
