"""Oracles for the text-only LLM: two exporters that share nothing with ours, each in an environment of its own.

    make oracles   makes the environments (build/oracles/optimum, build/oracles/genai), runs both, prints a table

case.py         a random Qwen2 as a Hugging Face folder, and what our exported graphs say        .venv
run_optimum.py  optimum-onnx: transformers' Qwen2, traced; imports nothing of this project       build/oracles/optimum
run_genai.py    ONNX Runtime GenAI: its own graph, its own cache; imports nothing of this project  build/oracles/genai
exchange.py     the files that pass between them; needs numpy alone                              all three
compare.py      logits of every position within 1e-4, greedy tokens equal; exit 3 if not         .venv
"""
