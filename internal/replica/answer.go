package replica

// answer is something that one goroutine waits for and another one gives, once.
type answer[T any] struct {
	v    T             // when done is closed
	done chan struct{} // closed by give
}

func newAnswer[T any]() *answer[T] { return &answer[T]{done: make(chan struct{})} }

func (a *answer[T]) give(v T) {
	a.v = v
	close(a.done)
}
