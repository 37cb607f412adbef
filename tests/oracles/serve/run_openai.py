"""OpenAI's client, and the exact requests that live-vlm-webui makes with it.

    python run_openai.py CASE.json     in an environment with openai alone; prints the results as JSON

CASE  url, token, and clips: each a list of data URLs of its frames, an mp4 of them, a question, and the true answer
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import openai
from openai import AsyncOpenAI, OpenAI


def main() -> None:
    with open(sys.argv[1], encoding="utf-8") as file:
        case = json.load(file)
    client = OpenAI(base_url=case["url"], api_key=case["token"], max_retries=0)
    (model,) = client.models.list().data
    told: dict[str, Any] = {
        "openai": openai.__version__,
        "model": model.id,
        "retrieved": client.models.retrieve(model.id).id,
    }
    told["clips"] = [asked_every_way(client, model.id, clip) for clip in case["clips"]]
    told["webui"] = asyncio.run(as_live_vlm_webui(case, model.id))
    told["errors"] = errors(client, model.id)
    print(json.dumps(told))


def asked_every_way(client: OpenAI, model: str, clip: dict[str, Any]) -> dict[str, Any]:
    """Ask the same question about the same frames as a list of JPEGs, as an mp4, streamed, and in a session."""
    question = {"type": "text", "text": clip["question"]}

    def asked(*parts: Any, **options: Any) -> Any:
        messages: Any = [{"role": "user", "content": [question, *parts]}]
        return client.chat.completions.create(model=model, messages=messages, **options)

    frames = {"type": "video_url", "video_url": {"url": clip["jpegs"]}}
    mp4 = {"type": "video_url", "video_url": {"url": clip["mp4"]}}
    kwargs = {"media_io_kwargs": {"video": {"num_frames": len(clip["frames"])}}}
    told = {
        "jpegs": asked(frames).choices[0].message.content,
        "mp4": asked(mp4, extra_body=kwargs).choices[0].message.content,
        "last frame": asked(image(clip["frames"][-1])).choices[0].message.content,
    }
    chunks = list(asked(frames, stream=True, stream_options={"include_usage": True}))
    told["streamed"] = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    told["usage"] = chunks[-1].usage.model_dump()
    told["sampled"] = [asked(frames, temperature=1.0, top_p=0.9, seed=7).choices[0].message.content for _ in range(2)]
    told["session"] = in_session(client, model, clip)
    return told


def in_session(client: OpenAI, model: str, clip: dict[str, Any]) -> dict[str, Any]:
    """Be a client that knows sessions only by a header: one request per frame, and each sees all frames before it."""
    headers = {"X-Session-Id": clip["session"]}
    counts = []
    for frame in clip["frames"]:
        content: Any = [{"type": "text", "text": clip["question"]}, image(frame)]
        raw = client.chat.completions.with_raw_response.create(
            model=model, messages=[{"role": "user", "content": content}], extra_headers=headers
        )
        counts.append(int(raw.headers["pvc-frames"]))
    client.delete(f"/streaming/sessions/{clip['session']}", cast_to=object)
    return {"frames": counts, "last": raw.parse().choices[0].message.content}


async def as_live_vlm_webui(case: dict[str, Any], model: str) -> dict[str, Any]:
    """live-vlm-webui 0.4: look up the models with the key from its settings, then send one picture at a time."""
    client = AsyncOpenAI(base_url=case["url"], api_key=case["token"] or "EMPTY")
    models = await client.models.list()
    chosen = next(each.id for each in models.data if "vision" in each.id)
    texts = []
    for clip in case["clips"]:
        content: Any = [{"type": "text", "text": clip["question"]}, image(clip["frames"][-1])]
        response = await client.chat.completions.create(
            model=chosen, messages=[{"role": "user", "content": content}], max_tokens=512, temperature=0.7
        )
        response.model_dump()
        texts.append((response.choices[0].message.content or "").strip())
    return {"model": chosen, "texts": texts}


def errors(client: OpenAI, model: str) -> dict[str, str]:
    """Return the client's exception for each wrong request."""
    messages: Any = [{"role": "user", "content": "hello"}]
    image_of_web: Any = [{"role": "user", "content": [image("https://example.org/cat.jpg")]}]
    wrong: dict[str, Any] = {
        "n": {"model": model, "messages": messages, "n": 2},
        "model": {"model": "gpt-4o", "messages": messages},
        "url": {"model": model, "messages": image_of_web},
        "tokens": {"model": model, "messages": messages, "max_tokens": 0},
    }
    found = {}
    for name, request in wrong.items():
        try:
            client.chat.completions.create(**request)
        except openai.APIStatusError as error:
            found[name] = f"{type(error).__name__} {error.code} {error.param}"
    try:
        OpenAI(base_url=str(client.base_url), api_key="wrong", max_retries=0).models.list()
    except openai.APIStatusError as error:
        found["token"] = f"{type(error).__name__} {error.code} {error.param}"
    return found


def image(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


if __name__ == "__main__":
    main()
