"""pvc-serve: many streams behind HTTP, as clients of OpenAI's interface and cameras use it."""
