"""Draw the pictures that the README shows: `make assets`."""

from pathlib import Path

from llama3_scratch import functional, load_checkpoint, plots

TEXT = "The capital of France is Paris. To be, or not to be, that is the question."


def main():
    ckpt = load_checkpoint()
    tokens = ckpt.tokenizer.encode(TEXT, bos=ckpt.tokenizer.add_bos)
    probs = functional.forward(tokens, ckpt.weights, ckpt.params).softmax(-1)
    sure, guess = probs[:-1].max(-1)
    picture = plots.predictions(
        plots.token_labels(ckpt.tokenizer, tokens[:-1]),
        plots.token_labels(ckpt.tokenizer, guess.tolist()),
        sure,
        [guess[m] == token for m, token in enumerate(tokens[1:])],
        f"What {ckpt.path.name} expects after each token (filled: it was right)",
    )
    path = Path(__file__).with_name("predictions.png")
    picture.save(path)
    print(path.name)


if __name__ == "__main__":
    main()
