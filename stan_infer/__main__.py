"""python -m stan_infer."""

from stan_infer.cli.main import main

if __name__ == "__main__":
    main()
