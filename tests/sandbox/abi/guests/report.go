// A program of Go's, with its runtime: a collector, goroutines, formatted output.
package main

import (
	"encoding/json"
	"fmt"
	"os"
)

func main() {
	data, err := os.ReadFile(os.Args[1])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(9)
	}
	sum := make(chan int)
	go func() {
		total := 0
		for _, value := range data {
			total += int(value)
		}
		sum <- total
	}()
	out, _ := json.Marshal(map[string]int{"bytes": len(data), "sum": <-sum})
	fmt.Println(string(out))
}
