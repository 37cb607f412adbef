"""pvc-serve: many streams over HTTP, for clients of OpenAI's API and for cameras."""
