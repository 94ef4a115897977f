"""Train a text classifier with Lightning, and prune it: the lines marked "new" are all that this takes.

    python examples/lightning_trainer.py MODEL --train train.tsv --dev dev.tsv --out dense
    python examples/lightning_trainer.py dense --train train.tsv --dev dev.tsv --budget macs=0.5 --out small

MODEL is a folder of transformers. The files have a column of texts (`--text`) and one of classes (`--label`: 0, 1 ...). An
interrupted run goes on with `--resume CHECKPOINT`.
"""

import argparse
import csv
import json
from typing import Any

import lightning as L
import torch
import transformers
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import l0prune  # new
from l0prune.integrations.lightning import L0Prune  # new


class Classifier(L.LightningModule):
    def __init__(self, net: torch.nn.Module, lr: float) -> None:
        super().__init__()
        self.net, self.lr = net, lr

    def training_step(self, batch: dict[str, torch.Tensor], _: int) -> torch.Tensor:
        return self.net(**batch).loss

    def validation_step(self, batch: dict[str, torch.Tensor], _: int) -> None:
        outputs = self.net(**batch)
        right = (outputs.logits.argmax(-1) == batch["labels"]).float().mean()
        self.log("accuracy", right, batch_size=len(batch["labels"]), prog_bar=True)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.lr)
        total = int(self.trainer.estimated_stepping_batches)
        schedule = transformers.get_linear_schedule_with_warmup(optimizer, total // 20, total)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def loader(path: str, tokenizer: Any, options: argparse.Namespace, *, shuffle: bool) -> torch.utils.data.DataLoader:
    with open(path, newline="", encoding="utf-8") as file:  # noqa: PTH123 - as people write it
        found = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))

    def collate(rows: list[dict[str, str]]) -> dict[str, torch.Tensor]:
        texts = [row[options.text] for row in rows]
        encoded = tokenizer(texts, truncation=True, max_length=128, padding=True, return_tensors="pt")
        return {**encoded, "labels": torch.tensor([int(row[options.label]) for row in rows])}

    return torch.utils.data.DataLoader(found, batch_size=options.batch_size, shuffle=shuffle, collate_fn=collate)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--train", required=True)
    parser.add_argument("--dev", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--text", default="sentence")
    parser.add_argument("--label", default="label")
    parser.add_argument("--classes", type=int, default=2)
    parser.add_argument("--budget", help="such as macs=0.5; without it the dense network is trained")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--max-steps", type=int, default=-1)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--accumulate", type=int, default=1)
    parser.add_argument("--lr", type=float, default=5e-5)
    parser.add_argument("--precision", default="32-true", help="such as bf16-mixed")
    parser.add_argument("--resume")
    options = parser.parse_args()

    L.seed_everything(0)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    model = AutoModelForSequenceClassification.from_pretrained(options.model, num_labels=options.classes)
    callbacks = []
    if options.budget:
        example = tokenizer(["two rows of words", "as the model gets them"], padding=True, return_tensors="pt")
        model = l0prune.inject(model, l0prune.trace(model, dict(example)))  # new
        callbacks = [L0Prune(budget=l0prune.Budget.parse(options.budget))]  # new
    train, dev = (
        loader(options.train, tokenizer, options, shuffle=True),
        loader(options.dev, tokenizer, options, shuffle=False),
    )
    trainer = L.Trainer(
        default_root_dir=f"{options.out}.training",
        max_epochs=options.epochs,
        max_steps=options.max_steps,
        accumulate_grad_batches=options.accumulate,
        precision=options.precision,
        gradient_clip_val=1.0,
        logger=False,
        callbacks=callbacks,
    )
    classifier = Classifier(model.train(), options.lr)
    trainer.fit(classifier, train, dev, ckpt_path=options.resume)
    figures = trainer.validate(classifier, dev, verbose=False)[0]
    print(json.dumps(figures))
    if options.budget:
        l0prune.hf.save_pretrained(callbacks[0].compact, options.out, tokenizer=tokenizer, scores=figures)
    else:
        model.save_pretrained(options.out)
        tokenizer.save_pretrained(options.out)


if __name__ == "__main__":
    main()
