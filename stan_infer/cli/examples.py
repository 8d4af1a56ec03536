"""What each command's help ends with: commands as one types them; `\\` goes on in the next line.

tests/cli/test_examples.py parses all of them, and runs those that the demo can.
"""

EXAMPLES = {
    "inspect": """\
stan-infer inspect best.pth
stan-infer inspect folder --frames 32
""",
    "run": """\
stan-infer run best.pth clip.mp4 --text "a dog runs" --text "a cat sleeps"
stan-infer run folder videos --labels labels.txt --top 1 --csv top1.csv
stan-infer run folder film.mp4 --text "a goal" --by text --windows 5:2
""",
    "watch": """\
stan-infer watch best.pth film.mp4 --text "a goal" --not "a crowd" \\
    --windows 1:0.5 --plot goals.html
stan-infer watch folder /dev/video0 --text "a fall" --not "a walk" --hold 4
stan-infer watch folder rtsp://camera/1 --texts texts.txt -o events.jsonl
""",
    "embed": """\
stan-infer embed folder videos -o vectors.npz
stan-infer embed folder videos -o library
stan-infer embed best.pth --texts texts.txt --normalise -o texts.npz
""",
    "search": """\
stan-infer search library "a goal" --top 5 --html found.html
stan-infer search library "a goal" --not "a crowd" --path "2026/*.mp4"
stan-infer search library --like clip.mp4 --csv found.csv
""",
    "serve": """\
stan-infer serve library
stan-infer serve library --port 0 --open
stan-infer serve library --host 0.0.0.0 --engine ort --model folder
""",
    "eval": """\
stan-infer eval best.pth --dataset msrvtt --videos MSRVTT/videos \\
    --annotations MSRVTT_JSFUSION_test.csv
stan-infer eval folder --dataset recognition --videos videos \\
    --annotations clips.csv --labels labels.txt --out results
""",
    "export": """\
stan-infer export best.pth -o folder
stan-infer export best.pth -o classes --head classify --labels labels.txt
stan-infer export folder --format tensorrt-rtx --target sm_89
""",
    "calibrate": """\
stan-infer calibrate folder --videos videos -o int8
stan-infer calibrate folder --videos videos -o int8 --metric top1 \\
    --annotations clips.csv --max-drop 0.5
""",
    "verify": """\
stan-infer verify folder
stan-infer verify best.pth folder
stan-infer verify best.pth folder --videos clip.mp4 --frames 8 --bisect
""",
    "convert": """\
stan-infer convert best.pth best.safetensors
stan-infer convert best.pth mug.safetensors --set head=mug
""",
    "bench": """\
stan-infer bench best.pth --engine eager,ort,openvino
stan-infer bench folder --threads 1 --out rows.jsonl --report report
""",
    "library inspect": """\
stan-infer library inspect library
stan-infer library inspect library --json
""",
    "library verify": """\
stan-infer library verify library
stan-infer library verify library folder --files
""",
    "library migrate": """\
stan-infer library migrate library best.pth
stan-infer library migrate library folder --drop
""",
    "doctor": """\
stan-infer doctor
stan-infer doctor --json > doctor.json
""",
}
