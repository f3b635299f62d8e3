"""One engine for many people: the scheduler, OpenAI's protocol over HTTP, and metrics."""
