"""Oracles for the text-only LLM: independent programs, each in its own environment.

    make oracles   makes the environments (build/oracles/NAME), runs all oracles, prints two tables

A random Qwen2, compared with two other exporters: logits of every position within 1e-4, greedy tokens equal.

case.py         the Qwen2 as a Hugging Face folder, and our exported graphs' answers             .venv
run_optimum.py  optimum-onnx: transformers' Qwen2, traced; imports nothing of this project       build/oracles/optimum
run_genai.py    ONNX Runtime GenAI: its own graph, its own cache; imports nothing of this project  build/oracles/genai
compare.py      runs both comparisons; exit code 3 if one of them fails                          .venv

A real SmolLM2, compared with transformers: logits of every step within 1e-4 of their range, tokens equal except for
near ties.

questions.py      its questions
run_smollm2.py    transformers' Llama with the weights of a GGUF; imports nothing of this project  build/oracles/smollm2
smollm2.py        these weights as a PVC checkpoint folder; answers of our reference and graphs  .venv
compare_steps.py  the comparison, and the planted defects it must detect                         .venv

exchange.py     the files that pass between the environments; needs only numpy                   all
"""
