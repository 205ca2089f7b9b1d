"""A language model trained on the tokens that a reference model finds learnable (Rho-1)."""

import torch
from torch.utils.data import DataLoader, Subset
from transformers import GPT2Config, GPT2LMHeadModel

import reducible as rd
from reducible.lab.data import sentences
from reducible.tasks import token_losses


def collate(rows: list[list[int]]) -> dict[str, torch.Tensor]:  # 0 pads
    longest = max(map(len, rows))
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
    labels = ids.masked_fill(ids == 0, -100)
    return {"input_ids": ids, "attention_mask": (ids > 0).long(), "labels": labels}


def train(data: Subset, steps: int, tokens: rd.TokenSelection | None) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    model = GPT2LMHeadModel(
        GPT2Config(vocab_size=256, n_positions=96, n_embd=48, n_layer=2, n_head=2,
                   bos_token_id=0, eos_token_id=0)
    )  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    loader = DataLoader(data, 32, shuffle=True, collate_fn=rd.collate_with_ids(collate))
    for _, (ids, batch) in zip(range(steps), loader, strict=False):
        labels = batch["labels"]
        logits = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        if tokens is None:
            loss = token_losses(logits, labels).sum() / (labels[:, 1:] != -100).sum()
        else:
            loss = tokens.loss(logits, labels, ids)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def main() -> None:
    data = rd.WithIds([list(text.encode()[:96]) for text in sentences().texts])  # 256 tokens
    holdout, rows = Subset(data, range(3_200)), Subset(data, range(3_200, 6_400))
    reference = train(holdout, 60, None)  # a pretrained model as it stands will do
    store = rd.score_token_irreducible_loss(
        reference, rows, collate_fn=rd.collate_with_ids(collate), progress=False
    )
    tokens = rd.TokenSelection("rho", keep=0.6, store=store)
    train(rows, 80, tokens)
    print(f"{store.tokens} tokens of {len(store)} sentences; 60 % of each batch's are trained on")
    print(f"choosing took {tokens.ledger.seconds['pick']:.2f} s of 80 updates")


if __name__ == "__main__":
    main()
