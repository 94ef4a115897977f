"""Train a text classifier with the Trainer of transformers, and prune it: the lines marked "new" are all that this takes.

    python examples/transformers_trainer.py MODEL --train train.tsv --dev dev.tsv --out dense
    python examples/transformers_trainer.py dense --train train.tsv --dev dev.tsv --budget macs=0.5 --out small

MODEL is a folder of transformers. The files have a column of texts (`--text`) and one of classes (`--label`: 0, 1 ...). Other
arguments are those of the Trainer: `--learning_rate 3e-5 --max_steps 100 --bf16` (on a CPU with `--use_cpu`). An interrupted run
goes on with `--resume`.
"""

import argparse
import csv
import json

import transformers
from transformers import AutoModelForSequenceClassification, AutoTokenizer, DataCollatorWithPadding, Trainer

import l0prune  # new
from l0prune.integrations.transformers import L0PruneCallback  # new


def rows(path: str, tokenizer: transformers.PreTrainedTokenizerBase, text: str, label: str) -> list[dict]:
    with open(path, newline="", encoding="utf-8") as file:  # noqa: PTH123 - as people write it
        found = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    encoded = tokenizer([row[text] for row in found], truncation=True, max_length=128)
    return [{**{name: encoded[name][i] for name in encoded}, "labels": int(row[label])} for i, row in enumerate(found)]


def accuracy(predicted: transformers.EvalPrediction) -> dict[str, float]:
    return {"accuracy": float((predicted.predictions.argmax(-1) == predicted.label_ids).mean())}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("model")
    parser.add_argument("--train", required=True)
    parser.add_argument("--dev", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--text", default="sentence")
    parser.add_argument("--label", default="label")
    parser.add_argument("--classes", type=int, default=2)
    parser.add_argument("--budget", help="such as macs=0.5; without it the dense network is trained")
    parser.add_argument("--resume", action="store_true")
    options, others = parser.parse_known_args()
    others = ["--per_device_train_batch_size=32", "--learning_rate=5e-5", "--warmup_steps=0.05", *others]
    args = transformers.HfArgumentParser(transformers.TrainingArguments).parse_args_into_dataclasses(
        [f"--output_dir={options.out}.training", "--report_to=none", *others]
    )[0]

    tokenizer = AutoTokenizer.from_pretrained(options.model)
    model = AutoModelForSequenceClassification.from_pretrained(options.model, num_labels=options.classes)
    train, dev = (rows(path, tokenizer, options.text, options.label) for path in (options.train, options.dev))
    callbacks = []
    if options.budget:
        example = tokenizer(["two rows of words", "as the model gets them"], padding=True, return_tensors="pt")
        model = l0prune.inject(model, l0prune.trace(model, dict(example)))  # new
        callbacks = [L0PruneCallback(budget=l0prune.Budget.parse(options.budget))]  # new
    trainer = Trainer(
        model=model,
        args=args,
        train_dataset=train,
        eval_dataset=dev,
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=accuracy,
        callbacks=callbacks,
    )
    trainer.train(resume_from_checkpoint=options.resume or None)
    figures = trainer.evaluate()
    print(json.dumps({name: figures[name] for name in ("eval_loss", "eval_accuracy")}))
    if options.budget:
        scores = {"accuracy": figures["eval_accuracy"]}
        l0prune.hf.save_pretrained(callbacks[0].compact, options.out, tokenizer=tokenizer, scores=scores)
    else:
        model.save_pretrained(options.out)
        tokenizer.save_pretrained(options.out)


if __name__ == "__main__":
    main()
