"""What tests share: environments, agents, commands, comparisons, and programs that they start.

No test imports from another test file: what two of them need is here.
"""
