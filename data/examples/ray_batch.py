"""Answer the requests of translation_en2zh.py --export-batch with Ray Data, on all of its nodes.

    pip install "ray[data]" aiohttp pydantic
    python data/examples/ray_batch.py requests.jsonl results.jsonl http://127.0.0.1:8000/v1

The key is read from OPENAI_API_KEY. --import-batch reads the results; what they lack is written
again by --export-batch with --lost-batch.
"""

import json
import os
import sys

import ray
from ray.data.llm import HttpRequestProcessorConfig, build_processor


def payload(row):
    return {"payload": json.loads(row["text"])["body"]}


def result(row):
    response = {"status_code": 200, "body": row["http_response"]}
    number = json.loads(row["text"])["custom_id"]
    return {"line": json.dumps({"custom_id": number, "response": response}, ensure_ascii=False)}


def main(requests, results, base_url):
    config = HttpRequestProcessorConfig(
        url=f"{base_url}/chat/completions",
        headers={"Authorization": f"Bearer {os.environ.get('OPENAI_API_KEY', 'none')}"},
    )
    answer = build_processor(config, preprocess=payload, postprocess=result)
    with open(results, "w", encoding="utf-8") as file:
        for row in answer(ray.data.read_text(requests)).iter_rows():
            print(row["line"], file=file, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
