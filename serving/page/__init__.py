"""The page: a dialogue about an aerial image in the browser."""
