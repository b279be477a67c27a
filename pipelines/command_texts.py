"""The commands of `cil`: what each does, an example of each, and the text of `cil --help`."""

__all__ = ["COMMANDS", "EXAMPLES", "HELP"]

COMMANDS = {
    "run": "all stages: encode, train, estimate, register, evaluate, sample",
    "encode": "videos to latent shards (Ray Data)",
    "train": "fine-tune on the shards (Ray Train, DeepSpeed ZeRO)",
    "validate": "measure a checkpoint on held-out clips again, by hand",
    "sweep": "train several arms of a comparison alike, and report on them",
    "estimate": "Analytic-Init statistics of the shards (Ray Data)",
    "register": "log and register the model (MLflow)",
    "evaluate": "measure models or folders of videos on held-out clips (Ray Data)",
    "leak": "report how much models look at the image instead of the noisy video (Ray Data)",
    "sample": "videos from a registered model or a model folder",
    "retrain": "the scheduled run: encode, and if there is something new train, judge and promote",
    "promote": "make a version of the registered model the champion",
    "rollback": "return to the champion before",
    "status": "versions, aliases and history of the registered model, and the last night",
    "import": "a published checkpoint to a model folder",
    "export": "a checkpoint of a training to a model folder, or to the published layout",
    "plan": "what encoding would keep, drop and take, or training need, without doing it",
    "submit": "run a command as a job on a Ray cluster, and follow it",
    "verify": "check every byte of a data set against its manifest",
    "doctor": "check this environment and say what to do",
}

HELP = """\
cil: image-to-video models that move, from raw video to a registered model

usage: cil COMMAND [--config FILE] [--section.field VALUE ...]

commands:
{commands}

options of every stage:
  --config FILE         YAML file with settings; see configs/
  --section.field VALUE override one setting, for example --train.num-steps 50
  --dry-run             print the resolved configuration and stop
  --json                print one JSON object as the last line of stdout
  --debug               show tracebacks and the logs of workers
  --log-format json     stderr as one JSON object per line; also CIL_LOG_FORMAT=json
  --help                all settings of a command with their defaults

examples:
  cil run --config configs/demo.yaml
  cil encode --config configs/demo.yaml --data.videos ~/clips --output.dir build/clips
  cil plan --config configs/demo.yaml --data.videos s3://bucket/clips
  cil plan --config configs/demo.yaml --stage train --gpu-memory-gib 24
  cil verify build/demo/run/dataset
  cil train --config configs/demo.yaml --train.num-workers 1 --dry-run
  cil sample --model models:/tiny-i2v@challenger --image photo.png --out video.mp4
  cil import dynamicrafter model.ckpt --tokenizer clip --out build/dynamicrafter
  cil export --output.dir build/demo/run --out build/exported
  cil sweep configs/compare.yaml
  cil submit -- train --config configs/svd-512.yaml
  cil retrain --config configs/demo.yaml
  cil status --config configs/demo.yaml
  cil evaluate --config configs/demo.yaml --evaluate.seeds-per-clip 4
  cil leak --sweep configs/compare.yaml
  cil doctor

A stage whose results are complete does nothing; a stage that was killed goes on where it stopped.
"""

EXAMPLES = {
    "run": "cil run --config configs/demo.yaml --data.videos ~/clips --output.dir build/clips",
    "encode": (
        "cil encode --config configs/demo.yaml --data.videos ~/clips --max-bad-fraction 0.1. "
        "Also: --max-bad-fraction X, short for --encode.max-bad-fraction"
    ),
    "plan": (
        "cil plan --config configs/demo.yaml --data.videos clips.csv --probe 100. "
        "Also: --probe N, the number of videos to look at; --stage train, for memory, steps and "
        "checkpoints of training, and --gpu-memory-gib X, the memory of a device"
    ),
    "train": (
        "cil train --config configs/demo.yaml --train.num-steps 50. Also: --replay FILE, to look "
        "at the clips of a step that was not finite"
    ),
    "validate": (
        "cil validate --output.dir build/demo/run. Also: --checkpoint FOLDER, one with "
        "ema.safetensors; unset takes train/best, else the last one. Without --config the settings "
        "are those that OUTPUT/train/config.yaml says"
    ),
    "sweep": (
        "cil sweep configs/compare.yaml --only naive --only timenoise; see docs/sweep.md. The file "
        "comes first; settings change the base of all arms. Also: --only ARM, --fail-fast, "
        "--register, to register each model in MLflow, --keep ARM, to make it the model of "
        "output.dir, with the alias; instead of --config, the sweep file"
    ),
    "estimate": "cil estimate --config configs/demo.yaml",
    "register": "cil register --config configs/demo.yaml --tracking.uri http://127.0.0.1:5000",
    "evaluate": (
        "cil evaluate --config configs/demo.yaml --arm base=build/base/register/model --arm "
        "tuned=models:/tiny-i2v@challenger; see docs/evaluation.md. Also: --arm NAME=PLACE, where "
        "PLACE is a model folder, models:/NAME@ALIAS or videos:FOLDER, again for each arm; unset "
        "takes the run's own model. --sweep FILE instead of --config, for the finished trainings "
        "of a sweep; --out FOLDER, unset takes OUTPUT/evaluate"
    ),
    "leak": (
        "cil leak --sweep configs/compare.yaml, or cil leak --config configs/demo.yaml --arm "
        "base=build/base/register/model --arm tuned=build/run/register/model; see "
        "docs/leak_report.md. The first arm is what the others are compared with. Also: --arm "
        "NAME=PLACE, where PLACE is a model folder or models:/NAME@ALIAS, again for each arm; "
        "unset takes the run's own model. --sweep FILE instead of --config, for the finished "
        "trainings of a sweep; --out FOLDER, unset takes OUTPUT/leak"
    ),
    "sample": (
        "cil sample --model build/demo/run/register/model --image photo.png --seed 3. "
        "Also: --analytic-init or --no-analytic-init, to start from the Analytic-Init Gaussian or "
        "from N(0, sigma^2 I); unset takes the model's own"
    ),
    "retrain": (
        "cil retrain --config configs/demo.yaml --json. Exit codes: 0 promoted or nothing new, 3 "
        "the gate refused the new model, 2 a mistake in the settings, 1 a failure"
    ),
    "promote": (
        "cil promote --config configs/demo.yaml --version 3. Also: --version N, unset takes the "
        "challenger; --reason TEXT, for the history; --force, for what no gate has passed; --yes"
    ),
    "rollback": (
        "cil rollback --config configs/demo.yaml --reason 'too jumpy'. Also: --reason TEXT, --yes"
    ),
    "status": "cil status --config configs/demo.yaml --json",
    "import": "cil import dynamicrafter model.ckpt --tokenizer clip --out build/dynamicrafter",
    "export": "cil export --output.dir build/demo/run --out build/exported",
    "submit": "cil submit --address http://127.0.0.1:8265 -- train --config configs/svd-512.yaml",
    "doctor": "cil doctor --config configs/demo.yaml",
}
