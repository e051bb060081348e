import sys
def go():
    n = int(sys.stdin.readline())
    items = [int(s) for s in sys.stdin.readline().split()]
    found = [i // 2 for i in items if i < 5]
    print(sum(found[:3]))
go()
