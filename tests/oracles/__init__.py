"""Oracles for the text-only LLM: programs that share nothing with ours, each in an environment of its own.

    make oracles   makes the environments (build/oracles/NAME), runs all, prints two tables

A random Qwen2, held against two other exporters: every position within 1e-4, greedy tokens equal.

case.py         the Qwen2 as a Hugging Face folder, and what our exported graphs say             .venv
run_optimum.py  optimum-onnx: transformers' Qwen2, traced; imports nothing of this project       build/oracles/optimum
run_genai.py    ONNX Runtime GenAI: its own graph, its own cache; imports nothing of this project  build/oracles/genai
compare.py      runs both comparisons; exit 3 if one of them fails                               .venv

A real SmolLM2, held against transformers: every step within 1e-4 of its logits' range, tokens equal but for near ties.

questions.py      what it is asked
run_smollm2.py    transformers' Llama with the weights of a GGUF; imports nothing of this project  build/oracles/smollm2
smollm2.py        these weights as a PVC checkpoint folder, what our reference and graphs say    .venv
compare_steps.py  the comparison, and what it must fail for                                      .venv

exchange.py     the files that pass between the environments; needs numpy alone                  all
"""
