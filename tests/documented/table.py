"""Every command line of README and docs, in the order of the pages, and how it is run."""

from __future__ import annotations

from .ways import Asked, Elsewhere, Heavy, Run, Serve, Table, Words

EXPORT, KIT = "pvc_export.commands.export.export", "pvc_export.commands.export.make_kit"
TINY = "-m checkpoint"
SHAPES_SERVED = "Serving pvc-vision-shapes at http://"
RAY = "python -m apps.serving.ray_app BUNDLE --replicas 2 --snapshots /shared/streams"
RAY_TESTS = "tests/on_ray/two_nodes.py"
FOR_RTX: Words = {"precision": "fp16", "target.name": "rtx"}
FOR_CPU: Words = {"precision": "fp32", "target.name": "cpu"}
LIVE_END = "--headless --frames 4"
TIMES_8B = "python -m apps.scale --times docs/examples/times_8b_h200.json --fps 1"

README: Table = {
    "make demo": Elsewhere("it installs and exports: minutes", "tests/pvc_export/commands/test_demo.py"),
    "make test": Elsewhere("it is what runs this", "make test"),
    "pvc-export trt -m FOLDER --fp16": Heavy(begins=EXPORT, asks=FOR_RTX | {"source.name": "checkpoint"}, small=""),
    "pvc-export check build/demo --report report.html": Run(
        alone=True, names={"build/demo": "build/mine"}, makes=("report.html",),
        says=("levels", "ok   D  stream", "report: report.html", "pass:"),
    ),
    "pvc-live build/demo --source 0": Run(adds=LIVE_END, says=("4 processed",)),
    "pvc-export kit -m FOLDER --target jetson-orin-jp62 -o KIT": Heavy(
        begins=KIT, asks={"target.name": "jetson-orin-jp62", "out": "KIT"}, small="", makes=("KIT/build.sh",)
    ),
    "pvc-serve build/demo": Serve(says=SHAPES_SERVED),
    "pvc-export batch build/demo FOLDER -o answers.jsonl": Run(
        names={"FOLDER": "videos", "answers.jsonl": "of_readme.jsonl"}, says=("2 videos", "2 rows in"),
        makes=("of_readme.jsonl",),
    ),
    "pvc-export check --reference pkg.module:Model --graph model.onnx": Run(
        adds="--state total=new_total --steps 16", says=("pass:",)
    ),
    "pvc-export plan -m FOLDER": Run(says=("no weight was read", "fits")),
    "make gpu": Elsewhere("it needs an NVIDIA GPU", "tests/pvc_export/gpu/test_run.py"),
    "pvc-export bench": Heavy(
        begins="pvc_export.bench.vision.VisionBench.run", asks={"size": "mid", "window": "16"},
        small="--size tiny --rounds 1 --skip compile",
    ),
}  # fmt: skip

EXPORTING: Table = {
    "pvc-export batch BUNDLE FOLDER --ask 'What happened?' -o answers.jsonl": Run(
        names={"FOLDER": "videos"}, says=("2 videos", "2 rows in answers.jsonl"), makes=("answers.jsonl",)
    ),
    "pvc-export kit -m CHECKPOINT_FOLDER --target jetson-orin-jp62 -o KIT": Heavy(
        begins=KIT, asks={"target.name": "jetson-orin-jp62", "source.name": "checkpoint"}, small=""
    ),
    "rsync -a KIT/ DEVICE:KIT/": Elsewhere("it needs a device", "make boxes"),
    "./build.sh": Elsewhere("it is run on a device, in a kit", "tests/engines/device/test_build.py"),
    "./run.sh --source csi:0 --ask 'What happens?'": Elsewhere("it needs a Jetson's camera", "tests/apps/test_kit.py"),
    "pvc-export inspect FOLDER": Run(says=("parameters", "each used once")),
    "pvc-export plan -m FOLDER --fp16": Run(says=("no weight was read", "fp16, target rtx", "fits")),
    "pvc-export trt -m FOLDER --fp16 -o build/mine": Heavy(
        begins=EXPORT, asks=FOR_RTX | {"out": "build/mine"}, small="", makes=("build/mine/manifest.json",)
    ),
    'pvc-export run build/mine --video clip.mp4 --ask "What happens?" --reference': Run(says=("reference: equal",)),
    "pvc-export onnx -m FOLDER --fp32": Heavy(begins=EXPORT, asks=FOR_CPU | {"out": "build/checkpoint"}, small=""),
    "pvc-export doctor --target tensorrt": Run(code=4, says=("tensorrt",)),
    "pvc-export trt --fp16 --int4 llm": Heavy(
        begins=EXPORT, asks=FOR_RTX | {"quantization.llm.bits": "4", "source.name": "shapes"}, small=TINY
    ),
    "pvc-export trt --fp16 --int8 vision --calibrate clip.mp4": Heavy(
        begins=EXPORT, asks=FOR_RTX | {"quantization.vision.bits": "8"}, small=TINY
    ),
    "pvc-export trt --fp16 --int8 ring --int8 cache": Heavy(
        begins=EXPORT, asks=FOR_RTX | {"int8_states": "('ring', 'cache')"}, small=TINY
    ),
    "pvc-export onnx --int8 vision --int8 llm --int8 head": Heavy(
        begins=EXPORT, small=TINY,
        asks=FOR_CPU | {f"quantization.{part}.bits": "8" for part in ("vision", "llm", "head")},
    ),
    "pvc-export onnx --int4 llm --int8 head": Heavy(
        begins=EXPORT, asks=FOR_CPU | {"quantization.llm.bits": "4", "quantization.head.bits": "8"}, small=TINY
    ),
    "pvc-export onnx --memory 200MiB": Heavy(begins=EXPORT, asks=FOR_CPU, small=TINY),
    "pvc-export onnx --streams 4 --window 4 --context 1024": Heavy(
        begins=EXPORT, asks={"limits.streams": "4", "limits.window": "4", "limits.context": "1024"}, small=TINY
    ),
    "pvc-export gpu -m FOLDER": Heavy(begins="pvc_export.commands.gpu.run_gpu", small=""),
    'pvc-export run build/mine --video clip.mp4 --ask "What happens?"': Run(says=("12 frames",)),
    "pip install -c constraints.txt -e '.[export,ort,rtx,apps,live]'": Elsewhere("it installs", "tests/test_wheel.py"),
}  # fmt: skip

LIVE: Table = {
    "pip install 'pvc-streaming-export[live,apps]'": Elsewhere("it installs", "tests/test_wheel.py"),
    "pvc-live BUNDLE --source rtsp://USER:PASSWORD@CAMERA/PATH --headless --web": Run(
        adds="--port 0 --frames 4", says=("http://127.0.0.1:", "4 processed")
    ),
    "pvc-live BUNDLE --ask 'Is anybody at the door?' --ask-when change --ask-every 3 --alert yes --alert "
    "'/(?:cat|dog)s?/i' --log events.jsonl --webhook https://example.org/hook --mqtt mqtt://pvc@broker/home/door "
    "--snapshots alerts/": Run(
        adds=f"{LIVE_END} --source clip.mp4", says=("4 processed",), makes=("events.jsonl", "alerts")
    ),
    "pvc-live BUNDLE --source rtsp://CAMERA/PATH --headless --state pvc.npz --save-every 30 --resume --record-folder "
    "days/ --record-quota 200G": Run(adds="--frames 4", says=("4 processed",), makes=("pvc.npz", "days/index.jsonl")),
    "pvc-live BUNDLE --source 0 --headless --web --served-as cam.example.org": Run(
        adds="--port 0 --frames 4", says=("token=", "4 processed")
    ),
    "pvc-live /opt/pvc/bundle --source /dev/video0 --headless --web --host 0.0.0.0 --state stream.npz --resume": Run(
        adds="--port 0 --frames 4", says=("4 processed",), makes=("stream.npz",)
    ),
    'pvc-live build/shapes --source 0 --ask "What do you see?"': Run(
        adds=LIVE_END, says=("clip.mp4 -> build/shapes", "4 processed")
    ),
    "pvc-live build/shapes --source clip.mp4 --headless --record out.mp4": Run(
        adds="--frames 4", says=("4 processed", "recorded out.mp4"), makes=("out.mp4",)
    ),
    "pvc-live build/shapes --source camera.h264 --fps 25 --headless": Run(adds="--frames 4", says=("4 processed",)),
    "sudo systemctl enable --now pvc-live": Elsewhere("it needs root and systemd", "tests/apps/test_watchdog.py"),
    "systemctl status pvc-live": Elsewhere("it needs systemd", "tests/apps/test_watchdog.py"),
    "journalctl -f -u pvc-live": Elsewhere("it needs systemd", "tests/apps/test_watchdog.py"),
    "python -m apps.soak build/shapes soak": Heavy(
        begins="apps.soak.run_soak", elsewhere="tests/apps/test_soak.py",
    ),
    "python -m apps.first_token build/shapes": Run(adds="--questions 12", says=("with frames", "p50", "without")),
}  # fmt: skip

MANY: Table = {
    "pvc-export onnx -m MODEL --streams 8 -o BUNDLE": Heavy(
        begins=EXPORT, asks={"limits.streams": "8", "out": "build/many"}, names={"BUNDLE": "build/many"}, small=""
    ),
    "python -m apps.serving.compare BUNDLE --baseline CHECKOUT OLD_BUNDLE": Run(
        adds="--streams 2 --frames 2 --rounds 1", says=("one by one", '"same_answers": true')
    ),
    "make oracles": Elsewhere("it has environments of its own", "tests/oracles/test_compare.py"),
    "make optimum": Elsewhere("it has an environment of its own", "tests/oracles/optimum_cli.py"),
    "python -m tests.oracles.smollm2 build/oracles/smollm2-case": Elsewhere(
        "it needs the weights that make oracles installs", "tests/oracles/test_smollm2.py"
    ),
    "pvc-export onnx -m build/oracles/smollm2-case/internvl --fp32 --context 1024 -o build/smollm2": Heavy(
        begins=EXPORT, asks=FOR_CPU | {"limits.context": "1024", "out": "build/smollm2"},
        names={"build/oracles/smollm2-case/internvl": "checkpoint"}, small="",
    ),
    'pvc-export run build/smollm2 --ask "What is the capital of France?" --reference': Run(
        names={"build/smollm2": "build/mine"}, says=("reference: equal",)
    ),
    "python record_original.py FOLDER RECORDING.npz": Elsewhere(
        "it runs a released checkpoint's own code", "tests/pvc_ref/checkpoint/test_record_original.py"
    ),
    "pvc-export compare FOLDER RECORDING.npz": Run(names={"FOLDER": "original"}, says=("equal: 10 values",)),
    "python -m apps.scale BUNDLE": Run(adds="--cameras 1 --seconds 1", says=("One stream alone, ms", "| cameras |")),
    f"{TIMES_8B} --most 8": Run(says=("simulated only, with the times in", "One process serves")),
    f"{TIMES_8B} --save-every 88 --seconds 60 --state-mib 1024 --snapshot-mib 330 --open-s 0.15 --cameras 32,64,96 "
    "--most 8": Run(says=("One process serves 78 cameras", "| 10,000 | 129 |")),
}  # fmt: skip

CHECKING: Table = {
    "pvc-export check build/demo": Run(alone=True, names={"build/demo": "build/mine"}, says=("pass:",)),
    "pvc-export check build/demo --report report.html --junit parity.xml": Run(
        alone=True, names={"build/demo": "build/mine"}, says=("pass:",), makes=("report.html", "parity.xml")
    ),
    "pvc-export check build/demo --golden": Run(names={"build/demo": "build/golden"}, says=("pass",)),
    "pvc-export onnx -o build/shapes": Heavy(
        begins=EXPORT, asks=FOR_CPU | {"out": "build/shapes", "source.name": "shapes"}, small=TINY
    ),
    "pvc-export prove build/shapes --only no-time -o build/broken": Run(
        names={"build/shapes": "build/mine"},
        says=("build/broken is build/mine with a defect", "next: pvc-export check build/broken --report report.html"),
        makes=("build/broken/manifest.json",),
    ),
    "pvc-export check build/broken --report report.html": Run(
        code=3, alone=True, after=("pvc-export prove build/shapes --only no-time -o build/broken",),
        says=(
            "FAIL temporal/features", "FAIL A  graph           structure of 'temporal': ", "Mul 'frozen_time'",
            "ok   C  shapes", "FAIL D  stream", "first temporal/features at frame 1 ",
            "First failing graph: 'temporal', at level D",
        ),
    ),
    "pvc-export check build/mine --bisect": Run(alone=True, says=("pass:",)),
    "python docs/examples/run_graphs.py BUNDLE FRAMES.npy OUT.npy": Run(makes=("OUT.npy",)),
    'pvc-export run build/shapes --video clip.mp4 --ask "What happened?"': Run(says=("12 frames", "answer: ")),
    "pvc-export run build/shapes --video frames/%03d.png --fps 4": Run(says=("4 frames, 4.00 fps", "answer: ")),
    'pvc-export run build/shapes --image card.jpg --ask "Which number is shown?"': Run(says=("answer: ",)),
    'pvc-export run build/shapes --ask "Is there a square?" --json': Run(says=('"answer"', '"text"')),
    "pvc-export check --reference docs/examples/counter.py:Counter --graph counter.onnx --state total=new_total": Run(
        says=("ok   D  stream", "pass: 8 of 8 levels")
    ),
}  # fmt: skip

SERVING: Table = {
    "pip install 'pvc-streaming-export[live,apps,ort,ray]'": Elsewhere("it installs", "tests/test_wheel.py"),
    "ray start --head": Elsewhere("it needs Ray, in an environment of its own", "make ray"),
    RAY: Heavy(begins="apps.serving.ray_app.import_serve", elsewhere=RAY_TESTS),
    f"{RAY} --replicas 4 --gpus 1": Heavy(begins="apps.serving.ray_app.import_serve", elsewhere=RAY_TESTS),
    f"{RAY} --every 8": Heavy(begins="apps.serving.ray_app.import_serve", elsewhere=RAY_TESTS),
    f"{RAY} --routes 2": Heavy(begins="apps.serving.ray_app.import_serve", elsewhere=RAY_TESTS),
    f"{RAY} --host 0.0.0.0": Heavy(begins="apps.serving.ray_app.import_serve", elsewhere=RAY_TESTS),
    f"{RAY} --ray-address local": Heavy(begins="apps.serving.ray_app.import_serve", elsewhere=RAY_TESTS),
    "pip install 'pvc-streaming-export[live,apps,ort]'": Elsewhere("it installs", "tests/test_wheel.py"),
    "pvc-serve BUNDLE": Serve(says=SHAPES_SERVED),
    "curl -X POST http://127.0.0.1:8000/v1/streaming/sessions -H 'Content-Type: application/json' -d "
    "'{\"id\": \"door\"}'": Asked(server="pvc-serve BUNDLE", says=('"door"',)),
    "curl -X POST 'http://127.0.0.1:8000/v1/streaming/sessions/door/frame?frame_index=0' -H 'Content-Type: image/jpeg' "
    "--data-binary @frame.jpg": Asked(server="pvc-serve BUNDLE", says=('"num_frames":1',)),
    "curl -X POST http://127.0.0.1:8000/v1/streaming/sessions/door/ask -H 'Content-Type: application/json' -d "
    "'{\"question\": \"Who is there?\"}'": Asked(server="pvc-serve BUNDLE", says=("streaming.answer", '"text"')),
    "curl -X DELETE http://127.0.0.1:8000/v1/streaming/sessions/door": Asked(server="pvc-serve BUNDLE"),
    "pvc-serve BUNDLE --sessions 8": Serve(says=SHAPES_SERVED),
    "pvc-serve BUNDLE --served-as pvc.example.org": Serve(says=SHAPES_SERVED),
    "python -m apps.serving.load http://127.0.0.1:8000 --clients 32 --seconds 600": Asked(
        server="pvc-serve BUNDLE", names={"32": "2", "600": "1"}, says=("statuses",)
    ),
    "pvc-export triton build/shapes -o MODELS": Run(makes=("build/models/shapes/config.pbtxt",)),
    "pvc-export triton build/shapes -o MODELS --name door --slots 16 --idle 30": Run(
        makes=("build/models/door/config.pbtxt",)
    ),
    "tritonserver --model-repository=MODELS": Elsewhere("it needs a container of NVIDIA's", "make triton"),
}  # fmt: skip

SHAPES: Table = {
    "pvc-export trt --fp16": Heavy(begins=EXPORT, asks=FOR_RTX | {"source.name": "shapes"}, small=TINY),
    "pvc-live build/shapes --source synthetic": Run(adds="--headless --frames 12", says=("12 processed",)),
    "python -m pvc_ref.train --out build/training": Heavy(
        begins="pvc_ref.train.train", asks={"num_steps": "10000"}, small="--steps 2 --workers 1"
    ),
    "python -m pvc_ref.evaluate": Run(
        adds="--clips 1 --json A.json", says=("## Conditions", "1 clips per condition"), makes=("A.json",)
    ),
    "python -m pvc_ref.evaluate -m FOLDER --against A.json": Run(
        names={"FOLDER": "shapes"}, adds="--clips 1", says=("## Conditions", "## Compared with A.json"),
        after=("python -m pvc_ref.evaluate",),
    ),
    "python -m pvc_ref.evaluate --study": Heavy(
        begins="pvc_ref.training.study.study", elsewhere="tests/pvc_ref/training/test_training.py"
    ),
}  # fmt: skip

TABLE: Table = {**README, **EXPORTING, **LIVE, **MANY, **CHECKING, **SERVING, **SHAPES}
