// Pause is the first process of a pod: it holds the pod's namespaces, reaps
// nothing but lets the kernel do it, and ends on SIGTERM or SIGINT.
package main

import (
	"os"
	"os/signal"
	"syscall"
)

func main() {
	signal.Ignore(syscall.SIGCHLD) // an ignored SIGCHLD: children leave no zombies, see wait(2)
	end := make(chan os.Signal, 1)
	signal.Notify(end, syscall.SIGINT, syscall.SIGTERM)
	<-end
}
